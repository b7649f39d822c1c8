"""Two data-parallel processes on gloo give one process's run, to rounding.

Rows are grouped differently on two processes, so sums differ in their last digits and an update carries
that on: 1e-4 relative after three updates in float32 is the stated tolerance.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from safebench import config
from tests.support.runs import make_parts, overrides, rows, tiny_run

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


def launch(parts: Path, root: Path, arm: str, processes: int, settings: list[str]) -> None:
    command = [sys.executable, "-m"]
    if processes > 1:
        # --multi_gpu picks the launcher that starts several processes, on a CPU too; without it there is one there.
        command += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "-m"]
    command += ["safebench", "run", arm, "--results", str(root)]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(parts), str(Path.cwd())])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (manifest,) = root.rglob("manifest.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["processes"] == processes


@pytest.mark.processes
@pytest.mark.parametrize("arm", ["ppo", "safe"])
def test_two_processes_give_the_run_of_one(parts: Path, tmp_path: Path, arm: str) -> None:
    values = {"update__steps": 3, "update__minibatches": 2, "reward__kl_coefficient": 0.05}
    chosen = overrides(parts, **values)
    tables = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        launch(parts, root, arm, processes, chosen)
        tables.append(rows(config.run_folder(root, tiny_run(parts, arm, **values))))
    one, two = tables
    assert one["step"].tolist() == two["step"].tolist() == [0, 1, 2, 3]
    for key in one.columns:
        if one[key].dtype.kind == "f":
            np.testing.assert_allclose(two[key], one[key], rtol=TOLERANCE, atol=1e-6, err_msg=key)
        else:
            assert one[key].astype(str).tolist() == two[key].astype(str).tolist(), key
