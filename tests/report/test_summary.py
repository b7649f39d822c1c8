"""The first screen of a comparison: short, each finding with its interval, what is not decided, where the rest is."""

from __future__ import annotations

from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.analysis.compare import Comparison, compare
from safebench.report import summary
from tests.support.synthetic import collapsing, healthy, write_run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def compared(root: Path, seeds: int, lift: float = 0.5) -> Comparison:
    """Compare ``ppo``, which collapses, with ``safe``, whose judge ends higher by about ``lift``."""
    for seed in range(seeds):
        write_run(root, "ppo", seed, collapsing(seed))
        curves = healthy(seed)
        curves["eval/judge"] = [value if value is None else value + lift for value in curves["eval/judge"]]
        write_run(root, "safe", seed, curves)
    found = runs.find(root)
    return compare({arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")})


def test_it_is_one_screen(tmp_path: Path) -> None:
    text = summary.render(compared(tmp_path, 6), width=100, color=False)
    rows = [line for line in text.split("Findings")[0].splitlines() if line.startswith((" * ", "   ")) and "[" in line]
    assert 3 < len(rows) <= 15
    assert len(text.splitlines()) < 50


@pytest.mark.parametrize("seeds", [5, 8])
def test_a_finding_has_its_interval_and_what_is_known(tmp_path: Path, seeds: int) -> None:
    comparison = compared(tmp_path, seeds)
    told = summary.findings(comparison)
    assert len(told) == len(comparison.tests) == 3
    (test,) = [test for test in comparison.tests if test.scalar.key == "judge_final"]
    (judge,) = [line for line in told if line.startswith("Held-out judge reward, end: ")]
    low, high = test.difference.value - test.difference.margin, test.difference.value + test.difference.margin
    assert "safe is " in judge and "above ppo" in judge
    value, _, margin = judge.split("safe is ")[1].split(" above")[0].partition(" ± ")
    assert float(value) - float(margin) == pytest.approx(low, abs=0.02)
    assert float(value) + float(margin) == pytest.approx(high, abs=0.02)
    (crash,) = [line for line in told if line.startswith("Crash rate: ")]
    assert f"0 of {seeds} runs of safe crashed, {seeds} of {seeds} runs of ppo crashed" in crash
    if seeds < 6:
        assert all(f"{seeds} pairs cannot decide it" in line for line in (judge, crash))
        assert "5 pairs cannot decide a figure: the test needs 6" in " ".join(summary.undecided(comparison))
    else:
        assert test.adjusted < 0.05 and "shown (p 0.0" in judge
        assert not [line for line in summary.undecided(comparison) if "judge reward, end" in line]


def test_a_difference_that_is_not_there_is_not_shown(tmp_path: Path) -> None:
    for seed in range(8):
        for arm in ("ppo", "safe"):
            curves = healthy(seed + 100 * (arm == "safe"))
            write_run(tmp_path, arm, seed, curves)
    found = runs.find(tmp_path)
    comparison = compare({arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")})
    assert all("not shown (p " in line for line in summary.findings(comparison))
    assert any("is missed by" in line for line in summary.undecided(comparison))


def test_the_commands_for_the_rest_are_shown() -> None:
    found = runs.find(REFERENCE)
    comparison = compare({arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")})
    commands = ("safebench compare ppo safe", "safebench report ppo safe")
    text = " ".join(summary.render(comparison, *commands, width=200, color=False).split())
    assert "`safebench compare ppo safe`" in text and "`safebench report ppo safe`" in text
    assert "seeds 0, 1, 2, 3, 4; steps 120" in text


def test_one_arm_alone_has_figures_and_no_findings(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", 0, healthy(0))
    text = summary.render(compare({"ppo": runs.find(tmp_path)}), width=100, color=False)
    assert "crash rate" in text and "Findings" not in text
