"""From a trainer's keys to our columns: what is kept, what converts, and what stays empty for which reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safebench.importers.history import Raw, Steps, number
from safebench.importers.keys import Key, Trainer, setting
from safebench.metrics import BY_KEY, MEASURED

Value = float | int | None
UNKNOWN = "not a key that this version knows"
NO_NUMBER = "no number"


@dataclass(frozen=True)
class Taken:
    """One column of ours and where it comes from. ``formula`` is in the trainer's own keys."""

    ours: str
    keys: tuple[str, ...]
    formula: str
    note: str


@dataclass(frozen=True)
class Converted:
    """Rows of ours by step, and what became of every key: ``kept`` as it was, ``converted``, or ``left``."""

    rows: Mapping[int, Mapping[str, Value]]
    kept: tuple[Taken, ...]
    converted: tuple[Taken, ...]
    left: tuple[tuple[str, str], ...]
    assumed: tuple[str, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """A usable line of the table: ``raw`` keys by the trainer's names, and the factor's value."""

    line: Key
    raw: Mapping[str, str]
    factor: float = 1.0

    @property
    def keeps(self) -> bool:
        """Whether our number is the trainer's own."""
        line = self.line
        return (line.scale, line.offset, line.factor) == (1.0, 0.0, None) and len(self.raw) == 1

    def value(self, row: Raw) -> Value:
        """Return our value in a row, None where it was not logged."""
        logged = [number(row.get(self.raw[name])) for name in self.line.names if name in self.raw]
        parts = [part for part in logged if part is not None]
        if not parts:
            return None
        less = [number(row.get(self.raw[name])) or 0.0 for name in self.line.less if name in self.raw]
        value = (self.line.offset + self.line.scale * (sum(parts) - sum(less))) * self.factor
        if self.line.only_broken and math.isfinite(value):
            return None
        counts = BY_KEY[str(self.line.ours)].unit == "replies"
        return int(value) if counts and math.isfinite(value) and value.is_integer() else value


def convert(steps: Steps, trainer: Trainer, config: Mapping[str, Any]) -> Converted:
    """Return the history in our columns. ``config``: what is known of the trainer's settings."""
    numeric = [key for key in steps.keys if any(number(row.get(key)) is not None for row in steps.rows.values())]
    raw: dict[str, str] = {}
    for key in numeric:
        raw.setdefault(trainer.plain(key), key)
    plans, assumed = _plans(trainer, raw, config)
    rows = {
        step: {**dict.fromkeys(MEASURED), "step": step, **{ours: plan.value(row) for ours, plan in plans.items()}}
        for step, row in steps.rows.items()
    }
    taken = [
        Taken(ours, tuple(plan.raw.values()), plan.line.formula(plan.raw), plan.line.why)
        for ours, plan in plans.items()
        if not plan.line.only_broken
    ]
    return Converted(
        rows=rows,
        kept=tuple(one for one in taken if plans[one.ours].keeps),
        converted=tuple(one for one in taken if not plans[one.ours].keeps),
        left=tuple(_left(steps, trainer, config, plans, numeric)),
        assumed=tuple(assumed),
        notices=tuple(_mixed(steps, numeric)),
    )


def _plans(trainer: Trainer, raw: Mapping[str, str], config: Mapping[str, Any]) -> tuple[dict[str, _Plan], list[str]]:
    """Choose the first usable line for each column, and tell what had to be assumed for it."""
    plans: dict[str, _Plan] = {}
    assumed: list[str] = []
    for line in trainer.keys:
        names = {name: raw[name] for name in (*line.names, *line.less) if name in raw}
        if line.ours is None or line.ours in plans or not any(name in names for name in line.names):
            continue
        if _refused(line, config) is not None:
            continue
        factor = number(setting(config, line.factor)[1]) if line.factor else None
        plans[line.ours] = _Plan(line, names, 1.0 if factor is None else factor)
        for path, allowed in line.needs.items():
            if not setting(config, path)[0]:
                assumed.append(f"{path} is {_said(allowed[0])}: else {line.ours} is not {line.formula(names)}")
    return plans, assumed


def _refused(line: Key, config: Mapping[str, Any]) -> str | None:
    """Return why a line cannot be used with these settings, None where it can."""
    if line.factor and number(setting(config, line.factor)[1]) is None:
        return f"{line.why}; the history does not say what {line.factor} was"
    for path, allowed in line.needs.items():
        known, value = setting(config, path)
        if known and value not in allowed:
            return f"{path} was {_said(value)}: {line.why}"
    return None


def _left(
    steps: Steps, trainer: Trainer, config: Mapping[str, Any], plans: Mapping[str, _Plan], numeric: list[str]
) -> list[tuple[str, str]]:
    used = {key for plan in plans.values() if not plan.line.only_broken for key in plan.raw.values()}
    broken = {key: plan for plan in plans.values() if plan.line.only_broken for key in plan.raw.values()}
    found = []
    for key in steps.keys:
        if key in used or key == steps.counted:
            continue
        line = trainer.line(trainer.plain(key))
        if key in broken:
            why = f"{broken[key].line.why}; values that are not finite are taken over"
        elif key not in numeric:
            why = NO_NUMBER
        elif line is None:
            why = UNKNOWN
        elif line.ours is None:
            why = line.why
        else:
            why = (
                _refused(line, config)
                or f"{line.ours} is taken from {plans[line.ours].line.formula(plans[line.ours].raw)}"
            )
        found.append((key, why))
    return found


def _mixed(steps: Steps, numeric: list[str]) -> list[str]:
    """Say which keys are numbers in some rows and something else in others."""
    said = []
    for key in numeric:
        cells = [row[key] for row in steps.rows.values() if key in row and row[key] is not None]
        odd = [cell for cell in cells if number(cell) is None]
        if odd:
            said.append(f"{key} is no number in {len(odd)} of {len(cells)} rows ({odd[0]!r}), which stay empty")
    return said


def _said(value: object) -> str:
    return "unset" if value is None else str(value)
