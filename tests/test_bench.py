"""The bench runs TRL's trainer and ours in turns and prints both with their ratios; which is faster is not tested."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "examples" / "bench"
NUMBER = r"\d+(?:\.\d+)?"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(BENCH / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.processes
def test_both_are_printed_with_their_ratio() -> None:
    done = run("side_by_side.py", "toy", "--pairs", "2")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^toy, (\d) of 2: (TRL|ours) …$", done.stderr, re.M) == [
        ("1", "TRL"), ("1", "ours"), ("2", "ours"), ("2", "TRL")
    ]
    assert "4 replies of 5 tokens to prompts of 6, 2 epochs" in done.stdout
    rows = dict(re.findall(r"^(\S.*?) \[(?:s|MiB)\] +(.*)$", done.stdout, re.M))
    assert list(rows) == [
        "time per update", "processor time per update", "peak memory above loading", "peak memory"
    ]
    for row in rows.values():
        spans = re.findall(rf"({NUMBER}) \(({NUMBER})–({NUMBER})\)", row)
        assert len(spans) == 3  # TRL, ours, ours / TRL
        assert all(float(least) <= float(median) <= float(most) for median, least, most in spans)
    # The ratio of a pair lies between the ratios of the extremes.
    theirs, ours, ratio = (tuple(map(float, span)) for span in re.findall(
        rf"({NUMBER}) \(({NUMBER})–({NUMBER})\)", rows["peak memory"]
    ))
    assert ours[1] / theirs[2] - 0.006 <= ratio[0] <= ours[2] / theirs[1] + 0.006


@pytest.mark.processes
@pytest.mark.parametrize("arm", ["trl", "ours", "ours-own"])
def test_an_arm_does_the_work_that_is_asked_for(arm: str) -> None:
    done = run("arm.py", arm, "toy")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["updates"] == 2
    assert found["replies"] == 2 * 4
    assert found["sampled"] == [4 * 5, 4 * 5]
    assert len(found["seconds"]) == len(found["processor"]) == 1  # the first update warms up
    assert all(value > 0 for value in found["seconds"] + found["processor"])
    assert found["peak"] == pytest.approx(found["loaded"] + found["above"])
    assert found["parameters"] == 128 * 16 + 2 * (2 * 16 * 16 + 16 + 2 * (8 * 16 + 8) + 3 * 16 * 32 + 2 * 16) + 16


@pytest.mark.processes
def test_an_unknown_model_is_named_with_those_there_are() -> None:
    done = run("side_by_side.py", "qwen3")
    assert done.returncode == 2
    assert "unknown: qwen3; there are embedded, qwen2-50m" in done.stderr
