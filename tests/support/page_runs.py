"""Runs for the tests of the HTML page: curves, held-out replies that try to break out, and a record of best of n."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safebench.analysis import runs
from safebench.analysis.compare import Comparison, compare
from safebench.analysis.runs import Run
from safebench.recording.jsonl import Sample, SamplesWriter
from tests.support.synthetic import CONSTANTS, collapsing, healthy, write_run

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    '<img src=x onerror="window.broken = 2"> & "quotes" \'single\' `ticks`',
    "first line\nsecond line\n\n  indented",
    "👩‍🚀 family 👨‍👩‍👧 and flags 🇳🇿",
    "שלום עולם, مرحبا",
    "<!-- comment --> {{ 7 * 7 }} {% raw %} %{y} ${x} \\u003c \u2028 end",
)
"""Replies that must be shown as they are."""
PROMPTS = tuple(f'prompt {row} <b>& "more"</b>' for row in range(20))
STEPS = 40


def with_held_out(curves: dict[str, list[Any]], seed: int) -> dict[str, list[Any]]:
    """Add KL and length at the evaluation points, so that there is a frontier."""
    points = [value is not None for value in curves["eval/judge"]]
    lengths = [12.0 - 0.02 * step if here else None for step, here in enumerate(points)]
    kls = [0.02 * step + 0.001 * seed * step if here else None for step, here in enumerate(points)]
    return {**curves, "eval/kl": kls, "eval/length": lengths}


def write_samples(folder: Path, arm: str, seed: int, steps: Sequence[int], rows: int = len(PROMPTS)) -> None:
    """Write held-out replies at ``steps``, the hostile ones first, and one training reply that no page shows."""
    writer = SamplesWriter(folder / "samples.jsonl")
    for step in steps:
        held = [
            Sample(row, PROMPTS[row], _reply(row, arm, seed, step), row / 8, -row / 4 or math.nan, "heldout")
            for row in range(rows)
        ]
        writer.write(step, [*held, Sample(0, "a training prompt", "a training reply", 0.0)])
    writer.close()


def _reply(row: int, arm: str, seed: int, step: int) -> str:
    return HOSTILE[row] if row < len(HOSTILE) else f"{arm} {seed} at {step}" if row % 2 else ""


def write_arms(root: Path, arms: Sequence[str], seeds: Sequence[int], steps: int = STEPS) -> dict[str, list[Run]]:
    """Write healthy runs of every arm; arms are variants of one experiment, so that any number can be had."""
    groups: dict[str, list[Run]] = {}
    for index, arm in enumerate(arms):
        for seed in seeds:
            curves = with_held_out(healthy(seed + 7 * index, steps), seed)
            path = write_run(root, "ppo", seed, curves, folder=f"ppo-{index}")
            write_samples(path, arm, seed, range(0, steps + 1, 20))
            groups.setdefault(arm, []).append(runs.read(path))
    return groups


def write_pair(root: Path) -> dict[str, list[Run]]:
    """Write three seeds of ppo, the second unstable at step 25 and the third collapsing, and three healthy of safe."""
    short = {key: values[:26] for key, values in with_held_out(healthy(1, STEPS), 1).items()}
    short["reward/mean"][-1] = math.nan
    unthreatened = {"controller/threshold": [None] * (STEPS + 1)}
    paths = [
        write_run(root, "ppo", 0, {**with_held_out(healthy(0, STEPS), 0), **unthreatened}),
        write_run(root, "ppo", 1, {**short, "controller/threshold": [None] * 26}, steps=STEPS, state="unstable"),
        write_run(root, "ppo", 2, {**with_held_out(collapsing(2, STEPS), 2), **unthreatened}),
        *(write_run(root, "safe", seed, with_held_out(healthy(seed + 5, STEPS), seed)) for seed in range(3)),
    ]
    for path in paths:
        run = runs.read(path)
        write_samples(path, run.experiment, run.seed, [s for s in (0, 20, 40) if s <= run.last_step])
    found = runs.find(root)
    return {arm: [run for run in found if run.experiment == arm] for arm in ("ppo", "safe")}


def write_best_of_n(root: Path, run: Run, draws: int = 8, prompts: int = 16) -> None:
    """Write a record of best of n that fits ``run``."""
    folder = root / "embedded" / "best-of-n" / "record"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("prompt", "draw", "proxy", "judge", "tokens"))
        for prompt in range(prompts):
            for draw in range(draws):
                proxy = generator.normal()
                writer.writerow((prompt, draw, proxy, 0.5 * proxy + 0.1 * generator.normal(), 5))
    settings = {
        "rollout.reply_tokens": run.settings["rollout"]["reply_tokens"],
        "prompts.max_tokens": run.settings["prompts"]["max_tokens"],
        "evaluation.prompts": run.settings["evaluation"]["prompts"],
        "model.dtype": run.settings["model"]["dtype"],
    }
    manifest: Mapping[str, Any] = {
        "complete": True, "prompts": prompts, "draws": draws, "hashes": CONSTANTS["hashes"], "settings": settings,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def pair(root: Path) -> Comparison:
    """Write the pair with a record of best of n, and compare it."""
    groups = write_pair(root)
    write_best_of_n(root, groups["safe"][0])
    return compare(groups)
