"""Synthetic runs for the tests of recording: rows that depend on the step alone, with crashes in them."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safebench.config.schema import Recording, Rollout, Settings, Update
from safebench.metrics import CRASH_KINDS, KEYS
from safebench.recording.jsonl import Sample
from safebench.recording.metrics_csv import Value
from safebench.recording.recorder import Recorder

STEPS = 60
MANIFEST: dict[str, Any] = {"sigma0": 0.7, "judge_sigma0": 0.5, "vocabulary": 1500, "hashes": {"model": "ab" * 32}}


def settings(steps: int = STEPS, trackers: tuple[str, ...] = (), seed: int = 3) -> Settings:
    """A run of ``steps``; windows of the crash specification shrink with it to 6 and 3 steps at 60."""
    return Settings(
        experiment="ppo",
        algorithm="ppo",
        seed=seed,
        update=Update(steps=steps),
        rollout=Rollout(reply_tokens=24),
        recording=Recording(trackers=trackers, keep_checkpoints=2),
    )


def row(step: int) -> dict[str, Value]:
    """Return a row without crash columns.

    Reward climbs until 20 and falls; entropy collapses from step 25 to 44; KL has a spike at 15 and runs away from 30
    on; replies are all alike from 28 to 35; a ratio blows out at 40; the gradient is not finite at 50.
    """
    made: dict[str, Value] = dict.fromkeys(key for key in KEYS if not key.startswith("crash/"))
    reward = 0.1 * min(step, 20) - 0.2 * max(0, step - 20) + 0.01 * math.sin(step)
    made.update(
        {
            "step": step,
            "episodes": 32 * step,
            "reward/mean": reward,
            "reward/std": abs(math.cos(step)) / 3.0,
            "kl/mean": 2.0 if step == 15 else 0.02 + (0.2 * (step - 29) if step >= 30 else 0.0),
            "entropy/mean": 0.1 if 25 <= step < 45 else 3.0,
            "reply/length": 12.5,
            "reply/ended": 0.5,
            "reply/distinct": 0.03 if 28 <= step < 36 else 1.0,
            "reply/distinct_2": 0.7,
            "update/ratio_max": 25.0 if step == 40 else 1.1,
            "grad/norm": math.nan if step == 50 else 1.0 / (step + 3.0),
            "controller/phase": "warmup" if step < 10 else "climbing",
            "time/step": 0.1,
        }
    )
    if step % 10 == 0:
        made["eval/judge"] = 0.3 * math.cos(step)
    return made


def samples(step: int) -> list[Sample]:
    """Return two samples, with everything in them that could break a line."""
    return [
        Sample(0, 'hi,\n"there"', f"caf\u00e9 \u2028 \U0001f600 {step}", 0.1 * step),
        Sample(1, "\x00\ud800", "", -1.5, 0.25),
    ]


def complete(step: int) -> dict[str, Value]:
    """Return a row with crash columns, as the recorder would write it when nothing ever crashed."""
    return {**row(step), **{f"crash/{kind}": 0 for kind in CRASH_KINDS}}


def play(recorder: Recorder, first: int, last: int, *, checkpoints: bool = True) -> None:
    """Record the steps from ``first`` to ``last``, a checkpoint every ten."""
    for step in range(first, last + 1):
        recorder.step(row(step))
        recorder.samples(step, samples(step))
        if checkpoints and step and step % 10 == 0:
            recorder.checkpoint(step, {"step": step})


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond ``limit`` bytes: a write that would go past it stops there, then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def closed_to_us(folder: Path) -> Iterator[None]:
    """Make ``folder`` one that may not be written, also where the tests run as root."""
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)
