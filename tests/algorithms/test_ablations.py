"""Each ablation and variant of SAFE differs from it in what it is named for, and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from safebench import config
from safebench.training import run
from tests.support.runs import make_parts, rows, tiny_run

OFF: dict[str, dict[str, Any]] = {
    "safe-no-double-critic": {"critic.heads": "single"},
    "safe-no-layer-norm": {"critic.layer_norm": False},
    "safe-no-target-critic": {"critic.target_decay": None},
    "safe-no-gate": {"penalty.gate": False},
    "safe-no-pid": {"penalty.pid.enabled": False},
    "safe-no-phase": {"penalty.phase.enabled": False},
    "safe-no-asymmetry": {"penalty.asymmetric": False},
    "safe-no-reward-norm": {"reward.normalise": False},
    "safe-no-entropy-bonus": {"loss.entropy_coefficient": 0.0},
}
ADDED: dict[str, dict[str, Any]] = {
    "safe-predictive": {"update.preview.ceiling": 0.5, "update.preview.trials": 3},
    "safe-momentum": {
        "penalty.gate": False,
        "penalty.pid.enabled": False,
        "penalty.phase.enabled": False,
        "penalty.momentum.coefficient": 5.0,
        "penalty.momentum.window": 50,
    },
}
SEEN = {
    "safe-no-double-critic": "critic/value",
    "safe-no-layer-norm": "critic/value",
    "safe-no-target-critic": "critic/return",
    "safe-no-gate": "controller/gate",
    "safe-no-pid": "controller/pid_p",
    "safe-no-phase": "controller/phase_factor",
    "safe-no-asymmetry": "loss/penalty",
    "safe-no-reward-norm": "reward/shaped",
    "safe-no-entropy-bonus": "loss/entropy",
    "safe-predictive": "preview/passes",
    "safe-momentum": "controller/threshold",
}
"""A column by whose second step the part shows."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


def differing(name: str) -> dict[str, Any]:
    """Return the keys in which the experiment's settings differ from safe's, with its values."""
    found = {key: value for key, _, value in config.changes(config.resolve(name), config.resolve("safe"))}
    return {key: value for key, value in found.items() if key not in ("experiment", "description")}


@pytest.mark.parametrize("name", [*OFF, *ADDED])
def test_it_differs_from_safe_in_what_it_is_named_for(name: str) -> None:
    assert differing(name) == {**OFF, **ADDED}[name]


def test_every_ablation_is_here() -> None:
    assert {name for name, _ in config.experiments() if name.startswith("safe-no-")} == set(OFF)


def table(parts: Path, root: Path, name: str) -> pd.DataFrame:
    outcome = run.execute(tiny_run(parts, name, update__steps=2), root)
    assert outcome.status == "finished"
    return rows(outcome.folder)


@pytest.fixture(scope="module")
def safe(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return table(parts, tmp_path_factory.mktemp("safe"), "safe")


@pytest.mark.parametrize("name", [*OFF, *ADDED])
def test_it_runs_and_the_part_shows(parts: Path, tmp_path: Path, safe: pd.DataFrame, name: str) -> None:
    mine = table(parts, tmp_path, name)
    assert mine["step"].tolist() == [0, 1, 2]
    assert mine["loss/total"].notna().tolist() == [False, True, True]
    assert not mine[SEEN[name]].equals(safe[SEEN[name]])
    # The batch that the first step is made on is the same.
    for key in ("reward/mean", "kl/mean", "entropy/mean"):
        assert mine[key][:2].equals(safe[key][:2])
