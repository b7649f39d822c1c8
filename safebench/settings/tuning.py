"""Tuning: the range of a setting that pilot runs may choose, and the record of a choice that was made."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from safebench.settings.section import Finite, NonNegative, Section

Sampler = Literal["halton", "optuna"]
"""What chose the points: Halton's sequence alone, or it for the first half and Optuna for the others."""


class Knob(Section):
    """Range of one setting: ``tuning.knobs`` of an experiment has one for each setting that tuning may change."""

    low: Finite
    high: Finite
    scale: Literal["linear", "log"] = "linear"
    """Whether the points are spread evenly over the range, or over its logarithm."""

    @model_validator(mode="after")
    def _range_is_one(self) -> Knob:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"scale: log needs a low above 0, not {self.low:g}")
        return self


class Tuned(Section):
    """How a tuned experiment was found, and what that cost. Nothing that a run computes depends on it."""

    experiment: str
    """The experiment as published."""
    preset: str | None = None
    criterion: str
    sampler: Sampler = "halton"
    seeds: tuple[NonNegativeInt, ...]
    """Of the pilot runs."""
    points: PositiveInt
    """Settings tried, the published one included."""
    runs: PositiveInt
    """Pilot runs, all points together; so are the costs below."""
    steps: NonNegativeInt
    tokens: NonNegativeInt
    seconds: NonNegative
    """Of training and evaluation, without the time to load."""
