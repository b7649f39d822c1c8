"""Turns a request of the command line into settings of runs, and gathers the runs in the results that it names."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from safebench import config
from safebench.analysis import rescored, runs
from safebench.analysis.compare import matching
from safebench.analysis.fairness import REPLICATE
from safebench.analysis.rescored import Judged
from safebench.analysis.runs import Run
from safebench.config import is_path, locate
from safebench.config.schema import Settings
from safebench.doctor import device_kind
from safebench.errors import BadResource, MissingResource, UsageError
from safebench.tuning.search import Tunable, tunable

T = TypeVar("T")
EMBEDDED = "embedded"
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class RunRequest:
    """A request of the command line, before it is resolved to settings."""

    experiments: Sequence[str]
    seeds: str | None = None
    preset: str | None = None
    model: str | None = None
    reward: str | None = None
    judge: str | None = None
    """Another judge; the empty string means no judge."""
    prompts: str | None = None
    random_weights: bool = False
    steps: int | None = None
    files: Sequence[Path] = ()
    overrides: Sequence[str] = ()
    trackers: Sequence[str] = ()
    trust: Sequence[str] = ()
    replicate: int | None = None

    def settings(self) -> list[Settings]:
        """Return the settings of each experiment and preset, once, before seeds are set; raise all faults at once."""
        return self._each(config.resolve)

    def tunable(self) -> list[Tunable]:
        """Return each experiment and preset with its knobs; raise all faults at once."""
        return self._each(tunable)

    def words(self) -> list[str]:
        """Return the options of the command line that this request was made from, without its seeds."""
        given = {
            "--preset": self.preset,
            "--model": self.model,
            "--reward": self.reward,
            "--prompts": self.prompts,
            "--steps": self.steps,
        }
        words = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
        words += ["--random-weights"] * self.random_weights
        several = (("--config", self.files), ("--set", self.overrides), ("--trust-remote-code", self.trust))
        return words + [word for flag, values in several for one in values for word in (flag, str(one))]

    def _each(self, resolve: Callable[..., T]) -> list[T]:
        found: list[T] = []
        wrong: list[UsageError] = []
        for experiment in dict.fromkeys(self.experiments):
            for preset in config.expand_preset(self.preset):
                try:
                    found.append(self._one(resolve, experiment, preset))
                except UsageError as error:
                    wrong.append(error)
        if wrong:
            raise UsageError("\n".join(dict.fromkeys(str(error) for error in wrong)), hint=wrong[0].hint)
        return found

    def seeded(self, default: str) -> list[Settings]:
        """Return the settings of every run: each experiment with each seed, in an outer loop over seeds.

        A comparison that is stopped early then has as many pairs as possible. Every other seed takes the experiments
        in reverse order: with two runs at a time and one slower algorithm, neither worker gets all of its runs.
        """
        chosen, experiments = parse_seeds(self.seeds or default), self.settings()
        orders = (experiments, experiments[::-1])
        return [one.model_copy(update={"seed": seed}) for i, seed in enumerate(chosen) for one in orders[i % 2]]

    def _one(self, resolve: Callable[..., T], experiment: str, preset: str | None) -> T:
        values = {
            "model.name": self.model,
            "model.random_weights": self.random_weights or None,
            "reward.name": self.reward,
            **({} if self.judge is None else {"reward.judge": self.judge or None}),
            "prompts.name": self.prompts,
            "update.steps": self.steps,
            "recording.trackers": parse_trackers(self.trackers) if self.trackers else None,
            "trust_remote_code": list(self.trust) or None,
            "compute.replicate": self.replicate,
        }
        values = {key: value for key, value in values.items() if value is not None or key == "reward.judge"}
        chosen = preset or self._default_preset(experiment, values)
        return resolve(experiment, preset=chosen, files=self.files, values=values, overrides=self.overrides)

    def _default_preset(self, experiment: str, values: Mapping[str, Any]) -> str | None:
        """Return the model's preset for this device if --model names another model than the embedded one, else None.

        The embedded world's precision and learning rate do not suit a larger model.
        """
        if self.model in (None, EMBEDDED) or "@" in experiment:
            return None
        device = config.resolve(experiment, files=self.files, values=values, overrides=self.overrides).compute.device
        return config.own_preset(self.model, device_kind(device))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that ``0-4``, ``3`` or ``0,2,7-9`` names, in that order, each once."""
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"--seeds {text!r}: {part.strip()!r} is no seed and no range", hint="Write 3, 0-4 or 0,2,7."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"--seeds {text!r}: {part.strip()!r} runs backwards", hint=f"Write {last}-{first}.")
        if last - first >= 10_000:
            raise UsageError(f"--seeds {text!r}: more than 10,000 runs", hint="Write fewer seeds.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def parse_trackers(names: Sequence[str]) -> list[str]:
    """Return the named trackers, separated by commas or given by repetition.

    ``csv`` is always on and left out here; ``none`` means no tracker besides it.
    """
    parts = [part.strip() for name in names for part in name.split(",")]
    found = [part for part in dict.fromkeys(parts) if part and part not in ("csv", "none")]
    if "none" in parts and found:
        raise UsageError(f"--tracker none and {', '.join(found)}", hint="Leave one of them out.")
    return found


@dataclass(frozen=True)
class RunGroups:
    """The complete runs of each experiment on ``seeds``; all were requested with ``preset``."""

    preset: str | None
    groups: dict[str, list[Run]]
    seeds: list[int]
    judged: Judged | None = None
    """The reward that was requested as the judge, and the replies that it scored; None if none was requested."""
    replicates: dict[str, list[Run]] | None = None
    """The same runs with sums in another order; None if they were not requested."""


@dataclass(frozen=True)
class RunFilter:
    """Which runs of the named experiments to take."""

    root: Path
    where: Sequence[str] = ()
    """Settings, ``key=value``, that runs must have; runs of any variant are then taken."""
    judge: str | None = None
    """Reward whose scores (`safebench rescore`) replace the judge's."""
    replicate: int | None = None
    """Number of the replicates to take in addition to the runs."""


def gather(request: RunRequest, selection: RunFilter) -> Iterator[RunGroups]:
    """Yield the runs of the requested experiments, preset by preset, and name the missing ones on stderr.

    Raises ``MissingResource`` if there are none at all.
    """
    for preset in config.expand_preset(request.preset):
        yield _gather(replace(request, preset=preset), selection)


def _gather(request: RunRequest, selection: RunFilter) -> RunGroups:
    wanted = _wanted(request, selection)
    there = {name: _there(name, settings, selection) for name, settings in wanted.items()}
    found = sorted({run.seed for all_ in there.values() for run in all_})
    seeds = parse_seeds(request.seeds) if request.seeds else found
    if not seeds:
        places = ", ".join(_place(name, settings, selection.root) for name, settings in wanted.items())
        raise MissingResource(f"no runs in {places}", hint="Add --run to make them." if not selection.where else None)
    groups = {name: _complete(name, there[name], seeds, selection) for name in wanted}
    for name, settings in wanted.items():
        if settings is not None and not selection.where:
            _warn_of_stale(settings, groups[name])
    if selection.judge is None:
        return RunGroups(request.preset, groups, seeds, replicates=_replicates(request, selection, seeds))
    found_by = rescored.judged(groups, selection.judge)
    return RunGroups(request.preset, found_by.groups, seeds, found_by)


def _replicates(request: RunRequest, selection: RunFilter, seeds: Sequence[int]) -> dict[str, list[Run]] | None:
    """Return the replicates of each experiment on ``seeds``; None if none were requested."""
    if selection.replicate is None:
        return None
    wanted = _wanted(replace(request, replicate=selection.replicate), selection)
    found = {
        name: _complete(f"{name} replicate {selection.replicate}", _there(name, settings, selection), seeds, selection)
        for name, settings in wanted.items()
        if settings is not None
    }
    if not any(found.values()):
        raise MissingResource(
            f"no replicates {selection.replicate} of {', '.join(wanted)}", hint="Add --run to make them."
        )
    return found


def _wanted(request: RunRequest, selection: RunFilter) -> dict[str, Settings | None]:
    """Return the experiments by name with their settings; None for one that only the results have (imported)."""
    wanted: dict[str, Settings | None] = {}
    for name in dict.fromkeys(request.experiments):
        if not is_path(name) and locate(name.split("@")[0]) is None and _imported(name, selection.root):
            wanted[name] = None
            continue
        (settings,) = replace(request, experiments=[name]).settings()
        wanted[settings.experiment] = settings
    return wanted


def _imported(name: str, root: Path) -> list[Run]:
    return [run for run in runs.find(root) if run.experiment == name]


def _not_replicates(found: Sequence[Run], where: Sequence[str]) -> list[Run]:
    """Return the runs without replicates, unless ``where`` asks for them; they are not among an arm's own runs."""
    asked = any(condition.partition("=")[0] == REPLICATE for condition in where)
    return [run for run in found if asked or not run.replicate]


def _there(name: str, settings: Settings | None, selection: RunFilter) -> list[Run]:
    if settings is None or selection.where:
        return matching(_not_replicates(_imported(name, selection.root), selection.where), selection.where)
    folder = config.run_folder(selection.root, settings).parent
    return runs.of_experiment(folder)


def _place(name: str, settings: Settings | None, root: Path) -> str:
    return str(config.run_folder(root, settings).parent) if settings is not None else f"{root} ({name})"


def _complete(name: str, there: Sequence[Run], seeds: Sequence[int], selection: RunFilter) -> list[Run]:
    """Return the complete runs on ``seeds``, and name the missing ones on stderr."""
    states = {seed: [run.status for run in there if run.seed == seed] or ["not there"] for seed in seeds}
    complete = [run for run in there if run.seed in seeds and run.complete]
    held = {run.seed for run in complete}
    missing = [f"{seed} ({', '.join(states[seed])})" for seed in seeds if seed not in held]
    if missing:
        advice = "" if selection.where else "; --run makes them"
        print(f"missing: {name}, seeds {', '.join(missing)}{advice}", file=sys.stderr)
    return sorted(complete, key=lambda run: run.seed)


def _warn_of_stale(settings: Settings, found: Iterable[Run]) -> None:
    """Print to stderr which runs were made with other settings than the experiment has now."""
    for run in found:
        try:
            made = config.load(run.folder / "config.yaml")
        except BadResource as error:  # made by another version: its figures can still be compared
            print(f"warning: {error}", file=sys.stderr)
            continue
        if config.settings_hash(made) != config.settings_hash(settings):
            keys = ", ".join(key for key, _, _ in config.changes(made, settings) if key != "seed")
            print(f"warning: {run.folder} was made with other settings than now asked for: {keys}", file=sys.stderr)
