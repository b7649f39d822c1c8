"""Run folders as the recorder leaves them, written through its own writers, with curves of our choosing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from safebench import config
from safebench.analysis.runs import Run
from safebench.config.schema import Settings
from safebench.metrics import KEYS
from safebench.recording import layout, manifest
from safebench.recording.layout import begin
from safebench.recording.metrics_csv import MetricsWriter

Curves = Mapping[str, Sequence[float | str | None]]
CONSTANTS = {
    "sigma0": 2.0,
    "judge_sigma0": 0.5,
    "vocabulary": 1000,
    "command": "safebench run ppo safe",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "hardware": {"cpu": "Some CPU", "usable_cores": 2, "device": "cpu"},
    "hashes": {"model": "aa", "reward": "bb"},
}


def write_run(
    root: Path,
    experiment: str,
    seed: int,
    curves: Curves,
    *,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    state: str = "finished",
    constants: Mapping[str, Any] = CONSTANTS,
    folder: str | None = None,
) -> Path:
    """Write one run: row t of a curve is step t, the row of step 0 included. Returns its folder."""
    rows = max(map(len, curves.values()))
    planned = rows - 1 if steps is None else steps
    settings = config.resolve(experiment, overrides=[f"update.steps={planned}", f"seed={seed}", *overrides])
    path = root / "embedded" / (folder or experiment) / f"seed-{seed}"
    leave(path, settings, curves, state=state, constants=constants)
    return path


def leave(
    path: Path, settings: Settings, curves: Curves, *, state: str = "finished", constants: Mapping[str, Any] = CONSTANTS
) -> None:
    """Write the run of these very settings into the folder ``path``, which is made."""
    rows = max(map(len, curves.values()))
    path.mkdir(parents=True)
    begin(path, settings, constants)
    writer = MetricsWriter(path / "metrics.csv")
    for step in range(rows):
        writer.write({**dict.fromkeys(KEYS), "step": step, **{key: values[step] for key, values in curves.items()}})
    writer.close()
    planned, begun, ended = settings.update.steps, "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00"
    layout.write_status(path, layout.StatusRecord(layout.Status(state), rows - 1, planned, begun, ended))
    assert manifest.read(path)["sigma0"] == constants["sigma0"]


def unpaired(run: Run) -> Run:
    """The same run, of an arm whose randomness is not ours."""
    return replace(run, manifest={**run.manifest, "paired": False})


def healthy(seed: int, steps: int = 100, every: int = 20) -> dict[str, list[Any]]:
    """Curves of a run that learns and stays whole."""
    noise = np.random.default_rng(seed)
    shape = [1 - math.exp(-3 * t / steps) for t in range(steps + 1)]
    points = [t % every == 0 or t == steps for t in range(steps + 1)]
    return {
        "reward/mean": _after_start(1.0 * s + 0.2 * float(noise.normal()) for s in shape),
        "kl/mean": _after_start(0.25 * s + 0.02 * float(noise.random()) for s in shape),
        "entropy/mean": _after_start(3.5 - 0.4 * s for s in shape),
        "reply/length": _after_start(12.0 + float(noise.random()) for _ in shape),
        "reply/distinct": _after_start(0.97 for _ in shape),
        "reply/distinct_2": _after_start(0.8 for _ in shape),
        "reply/ended": _after_start(0.9 for _ in shape),
        "loss/total": _after_start(0.1 * s for s in shape),
        "grad/norm": _after_start(0.5 for _ in shape),
        "update/ratio_max": _after_start(1.5 + float(noise.random()) for _ in shape),
        "critic/explained_variance": _after_start(0.6 * s for s in shape),
        "controller/threshold": _after_start(0.3 for _ in shape),
        "controller/phase": _after_start("climbing" for _ in shape),
        "eval/reward": _at(points, (1.0 * s + 0.1 * float(noise.normal()) for s in shape)),
        "eval/judge": _at(points, (0.4 * s + 0.05 * float(noise.normal()) for s in shape)),
        "eval/kl": _at(points, (0.25 * s for s in shape)),
        "eval/length": _at(points, (12.0 for _ in shape)),
        "time/step": _after_start(0.6 + 0.01 * float(noise.random()) for _ in shape),
        "time/evaluate": _at(points, (0.1 for _ in shape)),
        "speed/tokens_per_second": _after_start(700.0 + float(noise.random()) for _ in shape),
        "memory/peak": _after_start(900.0 for _ in shape),
        "tokens": _after_start(300.0 * t for t in range(steps + 1)),
    }


def collapsing(seed: int, steps: int = 100, at: float = 0.6) -> dict[str, list[Any]]:
    """Curves of a run that learns, then answers "yeah" to everything from about ``at`` of its steps on."""
    curves = healthy(seed, steps)
    start = round(at * steps) + seed
    for t in range(start, steps + 1):
        fallen = min(1.0, (t - start) / 10)
        curves["entropy/mean"][t] = 3.2 * (1 - fallen) + 0.1 * fallen
        curves["kl/mean"][t] = 0.3 + 2.7 * fallen
        curves["reply/distinct"][t] = 0.95 * (1 - fallen) + 0.05
        curves["reply/length"][t] = 12.0 - 10.0 * fallen
        if curves["eval/judge"][t] is not None:
            curves["eval/judge"][t] -= 1.2 * fallen
    return curves


def _after_start(values: Any) -> list[Any]:
    return [None, *list(values)[1:]]


def _at(points: Sequence[bool], values: Any) -> list[Any]:
    return [value if here else None for here, value in zip(points, values, strict=True)]
