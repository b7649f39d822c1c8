"""Whole runs under a ceiling of KL, and with momentum: resumed, and on two processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from safebench import config
from safebench.training import run
from tests.support.runs import make_parts, overrides, rows, tiny_run
from tests.training.test_parallel import TOLERANCE, launch

VARIANTS: dict[str, dict[str, Any]] = {
    "safe-predictive": {
        "update__learning_rate": 0.05,
        "update__minibatches": 2,
        "update__microbatch": 3,
        "update__preview__trials": 8,
    },
    "safe-momentum": {"penalty__momentum__window": 2},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


def acts(name: str, table: pd.DataFrame) -> bool:
    """Say whether the run is one in which the variant did something that must be carried over."""
    column = "preview/shrunk" if name == "safe-predictive" else "controller/momentum"
    return bool((table[column].fillna(0.0) != 0).sum() >= 2)


class Killed(BaseException):
    """Stands for a process that ends between two checkpoints."""


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("step", [2, 3])
def test_a_killed_run_resumes_to_the_same_rows(parts: Path, tmp_path: Path, name: str, step: int) -> None:
    settings = tiny_run(parts, name, **VARIANTS[name])
    whole = rows(run.execute(settings, tmp_path / "whole").folder)
    assert acts(name, whole)

    def kill(row: Mapping[str, Any], events: list[str]) -> None:
        if row["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        run.execute(settings, tmp_path / "parts", progress=kill)
    resumed = run.execute(settings, tmp_path / "parts")
    assert resumed.status == "finished"
    pd.testing.assert_frame_equal(whole, rows(resumed.folder), check_exact=True)


@pytest.mark.processes
def test_two_processes_shorten_as_one(parts: Path, tmp_path: Path) -> None:
    values = VARIANTS["safe-predictive"] | {"update__steps": 3, "update__microbatch": "null"}
    tables = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        launch(parts, root, "safe-predictive", processes, overrides(parts, **values))
        tables.append(rows(config.run_folder(root, tiny_run(parts, "safe-predictive", **values))))
    one, two = tables
    assert ((one["preview/scale"] > 0) & (one["preview/scale"] < 1)).any()
    for key in one.columns:
        if one[key].dtype.kind == "f":
            np.testing.assert_allclose(two[key], one[key], rtol=TOLERANCE, atol=1e-6, err_msg=key)
        else:
            assert one[key].astype(str).tolist() == two[key].astype(str).tolist(), key
