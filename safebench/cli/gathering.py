"""From what the command line names to runs that lie in the results, experiment by experiment."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safebench import config
from safebench.analysis import rescored, runs
from safebench.analysis.compare import matching
from safebench.analysis.fairness import REPLICATE
from safebench.analysis.rescored import Judged
from safebench.analysis.runs import Run
from safebench.cli.asked import Asked, parse_seeds
from safebench.errors import BadResource, MissingResource
from safebench.layers import is_path, locate
from safebench.settings import Settings


@dataclass(frozen=True)
class Gathered:
    """The complete runs of each experiment on ``seeds``; ``preset`` is what all of them were asked with."""

    preset: str | None
    groups: dict[str, list[Run]]
    seeds: list[int]
    judged: Judged | None = None
    """By which other judge than the runs' own, and over which replies."""
    replicates: dict[str, list[Run]] | None = None
    """The same runs with sums in another order, where they were asked for."""


@dataclass(frozen=True)
class Choice:
    """Which runs of the named experiments to take."""

    root: Path
    where: Sequence[str] = ()
    """Settings, ``key=value``, that runs must have; their variant does not matter then."""
    judge: str | None = None
    """Reward whose scores (`safebench rescore`) stand in for the judge's."""
    replicate: int | None = None
    """Which replicates of the runs to take beside them."""


def gather(asked: Asked, choice: Choice) -> Iterator[Gathered]:
    """Yield the runs of the experiments asked for, preset by preset, and name the missing ones on stderr.

    Raises ``MissingResource`` where there are none at all.
    """
    for preset in config.expand_preset(asked.preset):
        yield _gather(replace(asked, preset=preset), choice)


def _gather(asked: Asked, choice: Choice) -> Gathered:
    wanted = _wanted(asked, choice)
    there = {name: _there(name, settings, choice) for name, settings in wanted.items()}
    found = sorted({run.seed for all_ in there.values() for run in all_})
    seeds = parse_seeds(asked.seeds) if asked.seeds else found
    if not seeds:
        places = ", ".join(_place(name, settings, choice.root) for name, settings in wanted.items())
        raise MissingResource(f"no runs in {places}", hint="Add --run to make them." if not choice.where else None)
    groups = {name: _complete(name, there[name], seeds, choice) for name in wanted}
    for name, settings in wanted.items():
        if settings is not None and not choice.where:
            _warn_of_stale(settings, groups[name])
    if choice.judge is None:
        return Gathered(asked.preset, groups, seeds, replicates=_replicates(asked, choice, seeds))
    found_by = rescored.judged(groups, choice.judge)
    return Gathered(asked.preset, found_by.groups, seeds, found_by)


def _replicates(asked: Asked, choice: Choice, seeds: Sequence[int]) -> dict[str, list[Run]] | None:
    """Return the replicates of each experiment on ``seeds``; None where none were asked for."""
    if choice.replicate is None:
        return None
    wanted = _wanted(replace(asked, replicate=choice.replicate), choice)
    found = {
        name: _complete(f"{name} replicate {choice.replicate}", _there(name, settings, choice), seeds, choice)
        for name, settings in wanted.items()
        if settings is not None
    }
    if not any(found.values()):
        raise MissingResource(
            f"no replicates {choice.replicate} of {', '.join(wanted)}", hint="Add --run to make them."
        )
    return found


def _wanted(asked: Asked, choice: Choice) -> dict[str, Settings | None]:
    """Return the experiments by name with their settings; None for one that only the results know (imported)."""
    wanted: dict[str, Settings | None] = {}
    for name in dict.fromkeys(asked.experiments):
        if not is_path(name) and locate(name.split("@")[0]) is None and _imported(name, choice.root):
            wanted[name] = None
            continue
        (settings,) = replace(asked, experiments=[name]).settings()
        wanted[settings.experiment] = settings
    return wanted


def _imported(name: str, root: Path) -> list[Run]:
    return [run for run in runs.find(root) if run.experiment == name]


def _not_replicates(found: Sequence[Run], where: Sequence[str]) -> list[Run]:
    """Leave out replicates unless they are asked for: their arm's own runs are others."""
    asked = any(condition.partition("=")[0] == REPLICATE for condition in where)
    return [run for run in found if asked or not run.replicate]


def _there(name: str, settings: Settings | None, choice: Choice) -> list[Run]:
    if settings is None or choice.where:
        return matching(_not_replicates(_imported(name, choice.root), choice.where), choice.where)
    folder = config.run_folder(choice.root, settings).parent
    return runs.of_experiment(folder)


def _place(name: str, settings: Settings | None, root: Path) -> str:
    return str(config.run_folder(root, settings).parent) if settings is not None else f"{root} ({name})"


def _complete(name: str, there: Sequence[Run], seeds: Sequence[int], choice: Choice) -> list[Run]:
    """Return the runs that are results, and name the missing ones on stderr."""
    states = {seed: [run.status for run in there if run.seed == seed] or ["not there"] for seed in seeds}
    complete = [run for run in there if run.seed in seeds and run.complete]
    held = {run.seed for run in complete}
    missing = [f"{seed} ({', '.join(states[seed])})" for seed in seeds if seed not in held]
    if missing:
        advice = "" if choice.where else "; --run makes them"
        print(f"missing: {name}, seeds {', '.join(missing)}{advice}", file=sys.stderr)
    return sorted(complete, key=lambda run: run.seed)


def _warn_of_stale(settings: Settings, found: Iterable[Run]) -> None:
    """Say on stderr which runs were made when the experiment was another."""
    for run in found:
        try:
            made = config.load(run.folder / "config.yaml")
        except BadResource as error:  # made by another version: its figures can be compared all the same
            print(f"warning: {error}", file=sys.stderr)
            continue
        if config.settings_hash(made) != config.settings_hash(settings):
            keys = ", ".join(key for key, _, _ in config.changes(made, settings) if key != "seed")
            print(f"warning: {run.folder} was made with other settings than now asked for: {keys}", file=sys.stderr)
