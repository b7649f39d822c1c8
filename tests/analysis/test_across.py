"""Rows of all runs together: by hand, left out where nothing is known, and never with a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.analysis.compare import Comparison, compare
from safebench.analysis.rows import DISPERSION, RISK, WORST
from safebench.report.table import render
from tests.support.synthetic import CONSTANTS, write_run


def compared(root: Path, seeds: int, constants: dict[str, object] = CONSTANTS) -> Comparison:
    """Give seed s of ppo the constant reward s, and of safe 4 s."""
    for experiment, factor in (("ppo", 1.0), ("safe", 4.0)):
        for seed in range(seeds):
            write_run(root, experiment, seed, {"reward/mean": [None, *[factor * seed] * 4]}, constants=constants)
    found = runs.find(root)
    return compare({arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")})


def test_dispersion_and_worst_run_by_hand(tmp_path: Path) -> None:
    comparison = compared(tmp_path, 5)
    dispersion, risk = comparison.row("across_dispersion"), comparison.row("across_risk")
    # Rewards 0 to 4 have quartiles 1 and 3; sigma_0 is 2.
    assert dispersion.cells["ppo"].estimate.value == pytest.approx(1.0, rel=1e-15)
    assert dispersion.cells["safe"].estimate.value == pytest.approx(4.0, rel=1e-15)
    assert (dispersion.scalar, risk.scalar) == (DISPERSION, WORST)
    assert [risk.cells[arm].estimate.value for arm in ("ppo", "safe")] == [0.0, 0.0]
    assert not dispersion.differences
    text = render(comparison)
    assert "final reward, worst run [reward] ↑" in text
    assert text.index("dispersion across runs") < text.index("crash rate")


def test_from_21_runs_on_the_risk_is_a_tail(tmp_path: Path) -> None:
    risk = compared(tmp_path, 41).row("across_risk")
    assert risk.scalar is RISK
    assert risk.cells["ppo"].estimate.value == 1.0  # the 5 % quantile of 0 to 40 is 2: of 0, 1 and 2


def test_one_run_has_no_dispersion_and_unknown_units_no_figure(tmp_path: Path) -> None:
    assert all(row.scalar is not DISPERSION for row in compared(tmp_path / "one", 1).rows)
    unknown = compared(tmp_path / "unknown", 3, {**CONSTANTS, "sigma0": None})
    assert all(row.scalar is not DISPERSION for row in unknown.rows)
    assert any(row.scalar is WORST for row in unknown.rows)
