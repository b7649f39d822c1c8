"""Runs for the claims: summaries with figures of our choosing, and folders whose controller's log is consistent."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safebench.analysis.claims.verdicts import Case
from safebench.analysis.runs import Run, read
from safebench.analysis.scalars import Summary
from safebench.crashes.detect import SCALES, Event
from tests.support.synthetic import CONSTANTS, healthy, write_run

SIGMA0, JUDGE_SIGMA0 = CONSTANTS["sigma0"], CONSTANTS["judge_sigma0"]
COEFFICIENT = 0.1
VALUES = {
    "train_reward": 3.0, "kl_max": 0.5, "kl_mean": 0.3, "judge_final": 0.4, "judge_matched": 0.4, "volatility": 0.2,
    "time_update": 0.5, "memory_peak": 900.0,
}  # fmt: skip


def summary(seed: int, crashed: Sequence[str] = (), status: str = "finished", **values: float) -> Summary:
    """One run's summary with ``values`` over ordinary ones, and one episode of each kind in ``crashed``."""
    run = Run(Path(f"m/e/seed-{seed}"), "e", "m", seed, {}, dict(CONSTANTS), status)
    events = tuple(Event(kind, 5, 9, 1.0, 0.5) for kind in crashed)
    return Summary(run, VALUES | values, dict.fromkeys(SCALES, events), ())


def case(first: Sequence[Summary], second: Sequence[Summary] = ()) -> Case:
    """Hold the one against the other."""
    return Case("safe", "ppo", tuple(first), tuple(second))


def by_figure(key: str, first: Sequence[float], second: Sequence[float]) -> Case:
    """Pairs that differ in one figure."""
    arms = ([summary(seed, **{key: value}) for seed, value in enumerate(values)] for values in (first, second))
    return case(*arms)


def steady(value: float) -> Callable[[int], float]:
    """The same reward at every step."""
    return lambda step: value


def ramp(end: float, by: int) -> Callable[[int], float]:
    """Reward that rises from 0 at step 1 in a straight line to ``end`` at step ``by``, and stays."""
    return lambda step: end * min(1.0, (step - 1) / (by - 1))


def jump(at: int, height: float = 4.0) -> Callable[[int], float]:
    """Reward that is 0 until step ``at`` and ``height`` after it."""
    return lambda step: height * (step > at)


def folder(
    root: Path,
    name: str,
    seed: int,
    *,
    arm: str = "safe",
    steps: int = 40,
    reward: Callable[[int], float] | None = None,
    changes: Mapping[str, Callable[[int, Any], Any]] | None = None,
    overrides: Sequence[str] = (),
    state: str = "finished",
    recorded: int | None = None,
) -> Run:
    """Write one healthy run and read it back.

    ``reward`` gives reward/mean by step; ``changes`` alter single columns, cell by cell; ``recorded`` is the
    last step in the file where the run broke off. ``safe`` has a controller's log that explains its penalty.
    """
    curves = healthy(seed, steps, every=10)
    curves["memory/peak"] = [None, *[900.0 + seed] * steps]
    if reward:
        curves["reward/mean"] = [None, *map(reward, range(1, steps + 1))]
    if arm == "safe":
        curves |= control(steps)
    for key, change in (changes or {}).items():
        curves[key] = [change(step, cell) for step, cell in enumerate(curves[key])]
    if recorded is not None:
        curves = {key: values[: recorded + 1] for key, values in curves.items()}
    given = [f"update.steps={steps}", "rollout.reply_tokens=40", *overrides]
    return read(write_run(root, arm, seed, curves, steps=steps, overrides=given, state=state, folder=name))


def control(steps: int) -> dict[str, list[Any]]:
    """Columns of SAFE's controller and the penalty that follows from them, above the threshold at every other step."""
    log: dict[str, list[Any]] = {f"controller/{key}": [None] for key in _STEADY}
    log |= {key: [None] for key in ("controller/kl_short", "loss/penalty", "grad/penalty")}
    for step in range(1, steps + 1):
        for key, value in _STEADY.items():
            log[f"controller/{key}"].append(value)
        kl_short = 0.2 + 0.3 * (step % 2)
        log["controller/kl_short"].append(kl_short)
        log["loss/penalty"].append(0.6 * COEFFICIENT * max(0.0, kl_short - 0.3) ** 2)
        log["grad/penalty"].append((0.01 * (step % 2)) if step % 5 == 1 else None)
    return log


_STEADY: dict[str, Any] = {
    "kl_long": 0.2, "threshold": 0.3, "velocity": 0.0, "pid_p": 0.0, "pid_i": 0.0, "pid_d": 0.0, "phase": "climbing",
    "phase_factor": 1.0, "gate": 0.6,
}  # fmt: skip
assert math.isclose(0.6 * COEFFICIENT * 0.2**2, 0.0024)


def with_settings(run: Run, changed: Mapping[str, Any] | None = None, **fields: Any) -> Run:
    """The same run under other settings (``a.b`` keys) and other fields, its files as they are."""
    settings = copy.deepcopy(dict(run.settings))
    for key, value in (changed or {}).items():
        *path, last = key.split(".")
        place = settings
        for name in path:
            place = place[name]
        place[last] = value
    return replace(run, settings=settings, **fields)


def repeated(one: Summary, seeds: int = 6) -> list[Summary]:
    """The same run under several seeds."""
    return [replace(one, run=replace(one.run, seed=seed)) for seed in range(seeds)]


def plain(text: str) -> str:
    """Text without the line breaks and indents of a wrapped table."""
    return " ".join(text.split())
