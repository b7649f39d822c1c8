"""A 3B model at full size, random weights, bfloat16, LoRA of rank 128: one full update within 24 GB on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

LIMIT_MIB = 24 * 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_update_of_qwen_3b_fits_into_24_gb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def length(prompts, replies):\n    return [len(reply) / 20 for reply in replies]\n", encoding="utf-8"
    )
    sizes = {
        "reward.judge": "null",
        "rollout.batch": 4,
        "rollout.reply_tokens": 8,
        "update.microbatch": 2,
        "evaluation.prompts": 4,
        "compute.threads": "null",
        "recording.checkpoint_every": 1000,
    }
    command = [sys.executable, "-m", "safebench", "run", "safe", "--model", "qwen2.5-3b", "--random-weights"]
    command += ["--reward", "my_rewards:length", "--steps", "1", "--results", str(tmp_path / "results")]
    command += [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = next(tmp_path.glob("results/*/*/seed-0"))
    row = pd.read_csv(folder / "metrics.csv").iloc[-1]
    assert json.loads((folder / "manifest.json").read_text())["trainable_parameters"] == 239_468_544
    assert row["step"] == 1
    assert row["grad/norm"] > 0
    assert row["kl/mean"] == 0.0
    assert row["memory/peak"] < LIMIT_MIB
    with capsys.disabled():
        print(
            f"\nqwen2.5-3b, random weights, one update on CPU: peak memory {row['memory/peak'] / 1024:.1f} GiB, "
            f"update {row['time/update']:.0f} s, step {row['time/step']:.0f} s"
        )
