"""The crash specification: its thresholds with their units, and which kinds of event mean that a run crashed.

``docs/evidence.md`` has the reasons. Windows and spans are in steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from safebench.metrics import CRASH_KINDS, HARM_KINDS

SCALES: tuple[float, ...] = (0.5, 1.0, 2.0)
"""Severities every count is shown at."""


@dataclass(frozen=True)
class CrashSpec:
    """Every threshold of the specification, and what "crashed" means; a change of either is a new version."""

    version: int = 2
    harms: tuple[str, ...] = HARM_KINDS
    """Kinds that mean that a run crashed; every other kind is an alarm."""
    smoothing_span: float = 20.0
    """Steps; decay per step 1 - 2 / (span + 1). Never shrinks."""
    full_length: int = 500
    """Planned steps below which windows shrink in proportion."""
    reward_drop: float = 1.0
    """Drawdown of the smoothed reward, in sigma_0."""
    reward_window: int = 20
    judge_points: int = 2
    """Evaluation points that a ``judge_crash`` needs at least."""
    spike_factor: float = 5.0
    spike_floor: float = 0.5
    """Nats per token."""
    spike_history: int = 100
    kl_target: float = 0.3
    """Nats per token, for every arm."""
    runaway_factor: float = 3.0
    runaway_window: int = 50
    entropy_low: float = 0.2
    """Share of the first value."""
    entropy_rise: float = 0.5
    """Share of the way from the first value to ln V."""
    entropy_window: int = 50
    distinct_low: float = 0.2
    distinct_2_low: float = 0.1
    degenerate_window: int = 20
    length_low: float = 0.25
    """Share of the first value."""
    length_slack: float = 0.02
    """Share of the limit that the mean length may lack and still be pinned at it."""
    length_window: int = 50
    value_loss: float = 1.0
    """Minus the explained variance."""
    value_window: int = 50
    ratio_high: float = 10.0

    def shrunk(self, window: int, planned_steps: int) -> int:
        """Return ``window`` steps as they are in a run of ``planned_steps``: never below one."""
        return max(1, math.ceil(window * min(planned_steps, self.full_length) / self.full_length))

    def crashed(self, kinds: Collection[str]) -> bool:
        """Return whether a run with events of these kinds crashed."""
        return any(kind in self.harms for kind in kinds)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Kinds that are counted and mean no crash by themselves."""
        return tuple(kind for kind in CRASH_KINDS if kind not in self.harms)


SPEC = CrashSpec()
SPECS = {1: CrashSpec(version=1, harms=CRASH_KINDS), 2: SPEC}
"""Every version by its number. Their thresholds are equal: an event of one is an event of the other."""
