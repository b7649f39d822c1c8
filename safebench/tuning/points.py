"""Points of a search over knobs: the published setting, then a quasi-random sequence over the knobs' ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from safebench.errors import UsageError
from safebench.knobs import Tunable
from safebench.settings.tuning import Knob

DIGITS = 3
"""Significant digits of a value."""
PATIENCE = 64
"""Numbers of the sequence drawn per point wanted, before a search that finds no new points is given up."""

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

    The sequence has no random numbers, so that points are the same everywhere, and those of a larger count begin with
    those of a smaller one. Raises ``UsageError`` where whole numbers leave fewer than ``count`` points.
    """
    from scipy.stats import qmc

    published = tunable.published
    found: list[Mapping[str, Value]] = [published]
    sequence = qmc.Halton(len(tunable.knobs), scramble=False)
    sequence.fast_forward(1)  # its first element is the corner of all lows
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
    """Say whether a knob takes whole numbers alone: where its published value is one."""
    return isinstance(published, int)


def rounded(knob: Knob, value: float, whole: bool) -> int | float:
    """Return ``value`` at ``DIGITS`` digits, or as a whole number, within the knob's range."""
    if whole:
        return min(max(round(value), math.ceil(knob.low)), math.floor(knob.high))
    return min(max(float(f"{value:.{DIGITS}g}"), knob.low), knob.high)


def _scaled(knobs: Mapping[str, Knob], published: Mapping[str, Any], shares: Sequence[float]) -> dict[str, Value]:
    """Return the values at ``shares``, from 0 to 1, of the knobs' ranges; whole where the published value is."""
    pairs = zip(knobs.items(), shares, strict=True)
    return {key: _value(knob, share, is_whole(published[key])) for (key, knob), share in pairs}


def _value(knob: Knob, share: float, whole: bool) -> int | float:
    if knob.scale == "log":
        value = math.exp(math.log(knob.low) + share * (math.log(knob.high) - math.log(knob.low)))
    else:
        value = knob.low + share * (knob.high - knob.low)
    return rounded(knob, value, whole)
