"""Equal tuning: an experiment's knobs and their ranges, the points of a search over them, and its outcome and cost."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safebench import config
from safebench.analysis import statistics
from safebench.analysis.runs import Run
from safebench.analysis.scalars import BY_KEY, Scalar, summarise
from safebench.analysis.statistics import Estimate
from safebench.config import Fault, Path_, Stack, is_path, yaml_text
from safebench.config.schema import Knob, Sampler, Settings, Tuned
from safebench.errors import UsageError, unknown
from safebench.recording.jsonl import plain

EXAMPLE = "tuning: {knobs: {update: {learning_rate: {low: 3e-4, high: 1e-2, scale: log}}}}"
KNOBS: Path_ = ("tuning", "knobs")
_RANGE = frozenset(Knob.model_fields)


@dataclass(frozen=True)
class Tunable:
    """An experiment as published, and its knobs by key, ``a.b``, in the order of its files."""

    settings: Settings
    knobs: Mapping[str, Knob]

    @property
    def published(self) -> dict[str, Any]:
        """The published value of each knob; None where the setting is off."""
        return {key: value_of(self.settings, key) for key in self.knobs}


def tunable(
    experiment: str,
    *,
    preset: str | None = None,
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Tunable:
    """Return ``experiment``, resolved as for a run, with its knobs.

    Raises ``UsageError`` naming every fault: no knobs, a key that no setting has, an invalid range, a published value
    outside of its range, and a knob that the command line sets.
    """
    layers = config.lay(experiment, preset, files, overrides, values or {})
    settings = config.validated(layers.stack, experiment)
    if settings.tuned is not None:
        raise UsageError(
            f"{experiment} is tuned already, from {settings.tuned.experiment}",
            f"Tune {settings.tuned.experiment}: the cost of the first tuning would be lost otherwise.",
        )
    fixed = frozenset({config.COMMAND_LINE, *map(str, files)})
    knobs, found = _read(layers, settings, fixed)
    if found:
        raise config.refusal(experiment, found)
    if not knobs:
        raise UsageError(
            f"{experiment} names no knobs: there is nothing to tune", f"Write them in its file: {EXAMPLE}."
        )
    return Tunable(settings, knobs)


def value_of(settings: Settings, key: str) -> Any:
    """Return the value of the setting at ``key``, ``a.b``; raise ``KeyError`` if a section of it is off."""
    value: Any = settings
    for name in key.split("."):
        if value is None:
            raise KeyError(key)
        value = getattr(value, name)
    return value


def _read(layers: config.Layers, settings: Settings, fixed: frozenset[str]) -> tuple[dict[str, Knob], list[Fault]]:
    section, stack, found = layers.tuning, layers.stack, list[Fault]()
    if section is None:
        return {}, found
    if not isinstance(section, dict):
        return {}, [Fault("tuning", f"is a section: write {EXAMPLE}", stack.source(("tuning",)))]
    for key in section:
        if key != "knobs":
            found.append(Fault(f"tuning.{key}", f"{config.UNKNOWN}; there is knobs", stack.source(("tuning", key))))
    knobs: dict[str, Knob] = {}
    for path, value in _leaves(section.get("knobs"), ()):
        wrong = _key_fault(path, value, settings, stack)
        if wrong is not None:
            found.append(wrong)
            continue
        knob, of_range = config.of_section(Knob, value, (*KNOBS, *path), stack)
        found += of_range
        if knob is not None:
            key = ".".join(path)
            knobs[key] = knob
            found += _value_faults(key, knob, settings, stack, fixed)
    return knobs, found


def _leaves(value: Any, path: Path_) -> Iterator[tuple[Path_, Any]]:
    """Yield path and value of every knob below ``value``; null removes a knob.

    A mapping without keys of a range is a section. Everything else counts as a knob, valid or not.
    """
    if value is None:
        return
    if isinstance(value, dict) and not _RANGE & value.keys():
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _key_fault(path: Path_, value: Any, settings: Settings, stack: Stack) -> Fault | None:
    """Return the fault of a knob's key: unknown, not used by the run, in a section that is off, or not a number."""
    where, source = ".".join((*KNOBS, *path)), stack.source((*KNOBS, *path))
    if any("." in part for part in path):
        return Fault(where, f"write the key as sections: {EXAMPLE}", source)
    if not isinstance(value, dict):
        return Fault(where, f"is a section: write {EXAMPLE}", source)
    key = ".".join(path)
    if path not in dict(config.fields(Settings)):
        near = config.nearest_key(path, Settings)
        return Fault(where, config.UNKNOWN + (f"; did you mean {near}?" if near else ""), source)
    if path[0] in config.NOT_OF_THE_RUN:
        return Fault(where, "changes nothing that a run computes", source)
    try:
        published = value_of(settings, key)
    except KeyError:
        return Fault(where, "lies in a section that is off (null) in this experiment; null takes the knob away", source)
    if published is not None and (isinstance(published, bool) or not isinstance(published, int | float)):
        return Fault(where, f"the setting {key} is no number, but {published!r}", source)
    return None


def _value_faults(key: str, knob: Knob, settings: Settings, stack: Stack, fixed: frozenset[str]) -> list[Fault]:
    """Return a fault if the knob is set explicitly, or if its published value is outside of its range."""
    published, path = value_of(settings, key), tuple(key.split("."))
    source = stack.source(path)
    if source in fixed:
        return [Fault(key, "is a knob of this experiment: tuning would not change it", source, str(published))]
    if published is not None and not knob.low <= published <= knob.high:
        end = "low" if published < knob.low else "high"
        message = f"lies outside of its knob's range, {knob.low:g} to {knob.high:g}; --set tuning.knobs.{key}.{end}=…"
        return [Fault(key, message, source, str(published))]
    return []


DIGITS = 3
"""Number of significant digits of a value."""
PATIENCE = 64
"""Draws per requested point, after which a search that finds no new points is given up."""

Value = int | float | None
Source = Literal["published", "halton", "optuna"]


@dataclass(frozen=True)
class Point:
    """One choice of the knobs' values, by key. Number 1 is the experiment as published."""

    number: int
    values: Mapping[str, Value]
    source: Source = "halton"
    """Where the values come from."""

    @property
    def overrides(self) -> list[str]:
        """The values as settings, ``a.b=v``."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]


def points(tunable: Tunable, count: int) -> list[Point]:
    """Return ``count`` different points: the published one, then Halton's sequence, one prime base per knob.

    The sequence has no random numbers: the points are the same everywhere, and those of a larger count begin with those
    of a smaller one. Raises ``UsageError`` if rounding to whole numbers leaves fewer than ``count`` points.
    """
    from scipy.stats import qmc

    published = tunable.published
    found: list[Mapping[str, Value]] = [published]
    sequence = qmc.Halton(len(tunable.knobs), scramble=False)
    sequence.fast_forward(1)  # its first element is the low end of every range
    for row in sequence.random(PATIENCE * count):
        if len(found) == count:
            break
        values = _scaled(tunable.knobs, published, [float(share) for share in row])
        if values not in found:
            found.append(values)
    if len(found) < count:
        raise UsageError(
            f"the knobs of {tunable.settings.experiment} have {len(found)} different points, and {count} are asked for",
            "Lower --budget, or widen the ranges.",
        )
    others = (Point(number, values) for number, values in enumerate(found[1:], start=2))
    return [Point(1, published, "published"), *others]


def is_whole(published: Value) -> bool:
    """Return whether a knob takes only whole numbers, which is so if its published value is one."""
    return isinstance(published, int)


def rounded(knob: Knob, value: float, whole: bool) -> int | float:
    """Return ``value`` rounded to ``DIGITS`` digits, or to a whole number, within the knob's range."""
    if whole:
        return min(max(round(value), math.ceil(knob.low)), math.floor(knob.high))
    return min(max(float(f"{value:.{DIGITS}g}"), knob.low), knob.high)


def _scaled(knobs: Mapping[str, Knob], published: Mapping[str, Any], shares: Sequence[float]) -> dict[str, Value]:
    """Return the values at ``shares``, from 0 to 1, of the knobs' ranges; whole if the published value is."""
    pairs = zip(knobs.items(), shares, strict=True)
    return {key: _value(knob, share, is_whole(published[key])) for (key, knob), share in pairs}


def _value(knob: Knob, share: float, whole: bool) -> int | float:
    if knob.scale == "log":
        value = math.exp(math.log(knob.low) + share * (math.log(knob.high) - math.log(knob.low)))
    else:
        value = knob.low + share * (knob.high - knob.low)
    return rounded(knob, value, whole)


NOT_ALONE = "judge_matched"
"""A figure that is defined only in comparison with other runs."""


@dataclass(frozen=True)
class Pilot:
    """One pilot run: its criterion (NaN: not measured), how it ended, and its cost."""

    seed: int
    folder: str
    """Path below the folder of all pilot runs."""
    status: str
    value: float
    crashed: bool
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A point and its pilot runs. All of them count, however they ended."""

    point: Point
    pilots: tuple[Pilot, ...]

    @property
    def estimate(self) -> Estimate:
        """Mean of the criterion over the seeds that measured it, with its interval."""
        return statistics.mean([pilot.value for pilot in self.pilots if math.isfinite(pilot.value)])

    @property
    def whole(self) -> bool:
        """Whether every pilot run measured the criterion. If one did not, the point cannot win."""
        return all(math.isfinite(pilot.value) for pilot in self.pilots)


@dataclass(frozen=True)
class Search:
    """All trials of one experiment. ``name`` is its name or file as requested."""

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
        """The experiment's name without its preset."""
        return self.tunable.settings.experiment.partition("@")[0]

    @property
    def title(self) -> str:
        """The tuned experiment's name."""
        return f"{self.experiment}-tuned"

    @property
    def record(self) -> Tuned:
        """The record of the tuning and its cost."""
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
        """Return the tuned experiment as text of a file in ``folder``: the published one with the winner's values."""
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
    """Return the figure called ``key``; raise ``UsageError`` if it cannot be the criterion of a search."""
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
    """Return the outcome of one pilot run, from its files."""
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
