"""Two processes train as one does: the same batches, log and weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def run(folder: Path, processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m"]
    if processes > 1:
        # --multi_gpu picks the launcher that starts several processes, on a CPU too.
        command += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "-m"]
    command += ["tests.support.drop_in_child", str(folder), str(4 // processes)]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    assert found["processes"] == processes
    return found


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tmp_path: Path) -> None:
    one, two = (run(tmp_path / str(count), count) for count in (1, 2))
    for name, p in one["weights"].items():
        assert (two["weights"][name] - p).norm() <= 1e-4 * p.norm(), name
    assert len(one["log"]) == len(two["log"])
    for mine, theirs in zip(one["log"], two["log"], strict=True):
        assert theirs.keys() == mine.keys()
        for key, value in mine.items():
            assert theirs[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-5)), key
    assert sorted(path.name for path in (tmp_path / "2").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
