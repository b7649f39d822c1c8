"""The outcome of a search: each point's criterion over its pilot runs, the winner, and what all of it cost."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safebench import yaml_text
from safebench.analysis import statistics
from safebench.analysis.runs import Run
from safebench.analysis.scalars import BY_KEY, Scalar, summarise
from safebench.analysis.statistics import Estimate
from safebench.errors import UsageError
from safebench.knobs import Tunable
from safebench.layers import is_path
from safebench.names import unknown
from safebench.recording.jsonl import plain
from safebench.settings.tuning import Sampler, Tuned
from safebench.tuning.points import Point

NOT_ALONE = "judge_matched"
"""A figure that a run has only beside others."""


@dataclass(frozen=True)
class Pilot:
    """One pilot run: its criterion (NaN: not measured), how it ended, and what it cost."""

    seed: int
    folder: str
    """Below the folder of all pilot runs."""
    status: str
    value: float
    crashed: bool
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A point and its pilot runs. All of them count, whatever became of them."""

    point: Point
    pilots: tuple[Pilot, ...]

    @property
    def estimate(self) -> Estimate:
        """Mean of the criterion over the seeds that measured it, with its interval."""
        return statistics.mean([pilot.value for pilot in self.pilots if math.isfinite(pilot.value)])

    @property
    def whole(self) -> bool:
        """Whether every pilot run measured the criterion. A point where one did not cannot win."""
        return all(math.isfinite(pilot.value) for pilot in self.pilots)


@dataclass(frozen=True)
class Search:
    """All trials of one experiment. ``name`` is how it was asked for: an experiment's name or a file."""

    name: str
    tunable: Tunable
    criterion: Scalar
    trials: tuple[Trial, ...]
    sampler: Sampler = "halton"

    @cached_property
    def winner(self) -> Trial:
        """The trial with the best mean; of equal ones the first, so that the published setting wins a tie."""
        candidates = [trial for trial in self.trials if trial.whole]
        if not candidates:
            raise UsageError(
                f"no point of {self.experiment} has {self.criterion.key} in every pilot run",
                "Choose another --criterion, or a judge.",
            )
        sign = -1.0 if self.criterion.direction == "down" else 1.0
        return max(candidates, key=lambda trial: (sign * trial.estimate.value, -trial.point.number))

    @property
    def experiment(self) -> str:
        """The experiment's name, its preset left out."""
        return self.tunable.settings.experiment.partition("@")[0]

    @property
    def title(self) -> str:
        """The tuned experiment's name."""
        return f"{self.experiment}-tuned"

    @property
    def record(self) -> Tuned:
        """What the tuning was and cost."""
        pilots = [pilot for trial in self.trials for pilot in trial.pilots]
        return Tuned(
            experiment=self.experiment,
            preset=self.tunable.settings.experiment.partition("@")[2] or None,
            criterion=self.criterion.key,
            sampler=self.sampler,
            seeds=tuple(dict.fromkeys(pilot.seed for pilot in pilots)),
            points=len(self.trials),
            runs=len(pilots),
            steps=sum(pilot.steps for pilot in pilots),
            tokens=sum(pilot.tokens for pilot in pilots),
            seconds=round(sum(pilot.seconds for pilot in pilots), 1),
        )

    def to_json(self) -> str:
        """Return everything as JSON: knobs, points with their runs, criterion, winner, cost."""
        knobs, published = self.tunable.knobs, self.tunable.published
        content = {
            **self.record.model_dump(mode="json"),
            "criterion": {key: getattr(self.criterion, key) for key in ("key", "unit", "direction", "definition")},
            "knobs": {key: {**knob.model_dump(), "published": published[key]} for key, knob in knobs.items()},
            "points": [_trial(trial) for trial in self.trials],
            "winner": self.winner.point.number,
        }
        order = ("experiment", "preset", "criterion", "sampler", "seeds", "knobs", "points", "winner")
        cost = {key: content.pop(key) for key in ("runs", "steps", "tokens", "seconds")}
        told = {key: content[key] for key in order} | {"cost": cost}
        return json.dumps(plain(told), indent=2, allow_nan=False) + "\n"

    def to_yaml(self, folder: Path) -> str:
        """Return the tuned experiment, a file of ``folder``: the published one with the winner's values."""
        parent = os.path.relpath(Path(self.name).resolve(), folder.resolve()) if is_path(self.name) else self.experiment
        content: dict[str, Any] = {
            "extends": parent,
            "experiment": self.title,
            "description": f"{self.experiment}, tuned by {self.criterion.key} on {self.record.runs} pilot runs",
            "tuned": self.record.model_dump(mode="json"),
        }
        for key, value in self.winner.point.values.items():
            *above, last = key.split(".")
            section = content
            for name in above:
                section = section.setdefault(name, {})
            section[last] = value
        return "# Written by `safebench tune`; the search is in the .json beside it.\n" + yaml_text.write(content)


def criterion(key: str, judged: bool) -> Scalar:
    """Return the figure called ``key``; raise ``UsageError`` where no search can go by it."""
    if key not in BY_KEY:
        raise UsageError(f"--criterion {key}: {unknown(key, list(BY_KEY))}", "docs/evidence.md defines the figures.")
    found = BY_KEY[key]
    if found.direction == "none":
        raise UsageError(f"--criterion {key} has no better and worse", "Choose a figure with a direction.")
    if key == NOT_ALONE:
        raise UsageError(f"--criterion {key} depends on the runs that it is compared with", "Choose judge_final.")
    if key.startswith("judge_") and not judged:
        raise UsageError(f"--criterion {key} needs a judge, and there is none", "Set reward.judge, or choose another.")
    return found


def pilot(run: Run, criterion: Scalar) -> Pilot:
    """Return what one pilot run came to, from its files."""
    summary = summarise(run)
    timed = [run.column(key) for key in ("time/step", "time/evaluate")]
    tokens = summary.values["tokens"]
    return Pilot(
        seed=run.seed,
        folder="/".join(run.folder.parts[-3:]),
        status=run.status,
        value=summary.values[criterion.key],
        crashed=summary.crashed,
        steps=run.last_step,
        tokens=int(tokens) if math.isfinite(tokens) else 0,
        seconds=float(sum(column[column > 0].sum() for column in timed)),
    )


def search(
    name: str,
    tunable: Tunable,
    criterion: Scalar,
    runs: Iterable[tuple[Point, Sequence[Run]]],
    sampler: Sampler = "halton",
) -> Search:
    """Return the outcome of a search from its runs, point by point."""
    trials = (Trial(point, tuple(pilot(run, criterion) for run in found)) for point, found in runs)
    return Search(name, tunable, criterion, tuple(trials), sampler)


def _trial(trial: Trial) -> dict[str, Any]:
    estimate = trial.estimate
    return {
        "number": trial.point.number,
        "source": trial.point.source,
        "values": dict(trial.point.values),
        "mean": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "runs": [asdict(pilot) for pilot in trial.pilots],
    }
