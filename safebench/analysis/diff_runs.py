"""Compare two runs: settings, environment, files, and the first step at which their curves differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safebench.analysis.fairness import filled, flatten
from safebench.analysis.runs import Run
from safebench.metrics import METRICS

TOLERANCE = 1e-4
"""Relative difference up to which two machines' first rows count as the same."""
ENVIRONMENT = ("versions", "git", "python", "platform", "hardware", "processes", "threads")
"""Groups of the manifest that describe where a run was made."""
ABSENT = "–"


@dataclass(frozen=True)
class Part:
    """A column's first step with unequal values, and its first step with a relative difference above TOLERANCE.

    These are ``differs`` and ``beyond``, each None if there is no such step among those that both runs measured.
    ``first`` and ``second`` are the cells at ``differs``. ``alone`` is the number of common steps that only one run
    measured.
    """

    column: str
    differs: int | None
    beyond: int | None
    first: str = ""
    second: str = ""
    alone: int = 0

    @property
    def group(self) -> str:
        """Prefix of the column's name, before its slash."""
        return self.column.split("/", 1)[0]


@dataclass(frozen=True)
class Difference:
    """The differences between two runs; each mapping holds both values of every unequal key.

    ``parts`` holds the columns that both runs measured, except those of time and memory, in the schema's order.
    ``common`` holds the steps that both runs have, and ``only`` the columns that one run alone measured.
    """

    names: tuple[str, str]
    settings: Mapping[str, tuple[Any, Any]]
    environment: Mapping[str, tuple[Any, Any]]
    hashes: Mapping[str, tuple[Any, Any]]
    constants: Mapping[str, tuple[Any, Any]]
    status: tuple[str, str]
    steps: tuple[int, int]
    common: tuple[int, ...]
    parts: tuple[Part, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def equal(self) -> bool:
        """Whether all columns that both runs measured are equal bit for bit; the files hold every digit."""
        return bool(self.common) and all(part.differs is None for part in self.parts)

    @property
    def first(self) -> Part | None:
        """The column that differs first, by the schema's order among those of one step; None if no column differs."""
        parted = [(part.differs, index) for index, part in enumerate(self.parts) if part.differs is not None]
        return self.parts[min(parted)[1]] if parted else None

    @property
    def groups(self) -> dict[str, tuple[Part, ...]]:
        """The columns by the prefix before their slash."""
        names = dict.fromkeys(part.group for part in self.parts)
        return {name: tuple(part for part in self.parts if part.group == name) for name in names}


def differences(first: Run, second: Run) -> Difference:
    """Return the differences between two runs. Crash columns are left out, because they follow from the others.

    Raises ``BadResource`` if a metrics.csv is broken.
    """
    rows = [_rows(run) for run in (first, second)]
    common = tuple(sorted(rows[0].keys() & rows[1].keys()))
    columns = [
        metric.key
        for metric in METRICS
        if not metric.environment and metric.key != "step" and not metric.key.startswith("crash/")
    ]
    measured = [{key for key in columns if any(run.cells.get(key, ()))} for run in (first, second)]
    cells = [
        {key: [run.cells[key][found[step]] for step in common] for key in sorted(keys)}
        for run, found, keys in zip((first, second), rows, measured, strict=True)
    ]
    return Difference(
        names=(_name(first), _name(second)),
        settings=_unequal(filled(first), filled(second)),
        environment=_unequal(*(_chosen(run.manifest, ENVIRONMENT) for run in (first, second))),
        hashes=_unequal(*(_chosen(run.manifest, ("hashes",)) for run in (first, second))),
        constants=_unequal(
            *(_chosen(run.manifest, ("sigma0", "judge_sigma0", "vocabulary")) for run in (first, second))
        ),
        status=(first.status, second.status),
        steps=(first.last_step, second.last_step),
        common=common,
        parts=tuple(
            _part(key, common, cells[0][key], cells[1][key])
            for key in columns
            if key in measured[0] and key in measured[1]
        ),
        only=(_missing(columns, *measured), _missing(columns, *reversed(measured))),
    )


def _part(column: str, steps: Sequence[int], first: Sequence[str], second: Sequence[str]) -> Part:
    pairs = list(zip(steps, first, second, strict=True))
    alone = sum((ours == "") != (theirs == "") for _, ours, theirs in pairs)
    unequal = [(step, ours, theirs) for step, ours, theirs in pairs if "" not in (ours, theirs) and ours != theirs]
    if not unequal:
        return Part(column, None, None, alone=alone)
    beyond = next((step for step, ours, theirs in unequal if _apart(ours, theirs)), None)
    start, ours, theirs = unequal[0]
    return Part(column, start, beyond, ours, theirs, alone)


def _apart(first: str, second: str) -> bool:
    """Return whether two unequal cells differ by more than the tolerance; names always do."""
    try:
        ours, theirs = float(first), float(second)
    except ValueError:
        return True
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return not (ours == theirs or (math.isnan(ours) and math.isnan(theirs)))
    return abs(ours - theirs) > TOLERANCE * max(abs(ours), abs(theirs))


def _rows(run: Run) -> dict[int, int]:
    """Return the row index of each step."""
    return {int(float(step)): row for row, step in enumerate(run.cells.get("step", ()))}


def _missing(columns: Sequence[str], here: set[str], there: set[str]) -> tuple[str, ...]:
    return tuple(key for key in columns if key in here and key not in there)


def _chosen(manifest: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return flatten({name: manifest[name] for name in names if name in manifest})


def _unequal(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*first, *second])
    pairs = {key: (first.get(key, ABSENT), second.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if type(pair[0]) is not type(pair[1]) or pair[0] != pair[1]}


def _name(run: Run) -> str:
    return "/".join(run.folder.resolve().parts[-3:])
