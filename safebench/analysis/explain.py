"""Find when a run's penalty acted and what its log shows for these steps; pure, from metrics.csv and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from safebench.analysis.runs import Run

Array = NDArray[np.float64]
AFTER = 10
"""Number of steps after an episode's first step at which its KL is examined again."""


@dataclass(frozen=True)
class Episode:
    """Consecutive steps with a penalty. ``rows`` index the log; ``open`` means that the log ends in the episode."""

    rows: tuple[int, ...]
    first: int
    last: int
    total: float
    open: bool


class Stretch(NamedTuple):
    """Consecutive steps of one phase."""

    phase: str
    first: int
    last: int


class Aftermath(NamedTuple):
    """Batch KL at an episode's first step, ``AFTER`` steps later (or at the log's end), and its minimum between."""

    start: float
    step: int
    kl: float
    least: float
    least_step: int
    whole: bool
    """Whether the log continues for ``AFTER`` steps."""


@dataclass(frozen=True)
class Log:
    """The training steps of a run."""

    run: Run

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """Rows of metrics.csv that are training steps."""
        return np.flatnonzero(self.run.column("step") >= 1)

    @cached_property
    def steps(self) -> Array:
        """Step of each row."""
        return self.column("step")

    def column(self, key: str) -> Array:
        """Return one column over the training steps, NaN where it was not measured."""
        return self.run.column(key)[self.rows]

    def has(self, key: str) -> bool:
        """Return whether any training step has a finite value of the column."""
        return bool(np.isfinite(self.column(key)).any())

    @cached_property
    def phases(self) -> list[str]:
        """Phase of each training step, empty if none is logged."""
        cells = self.run.cells.get("controller/phase")
        return [cells[row] if cells else "" for row in self.rows.tolist()]

    @property
    def penalty_settings(self) -> Mapping[str, Any] | None:
        """Settings of the controller; None if the run has none."""
        found = self.run.settings.get("penalty")
        return found if isinstance(found, Mapping) else None

    @property
    def tracked(self) -> str:
        """The column of the KL that the controller compares to its threshold."""
        return "controller/kl_short" if self.has("controller/kl_short") else "kl/mean"

    @cached_property
    def acting(self) -> NDArray[np.intp]:
        """Rows with a penalty above zero."""
        return np.flatnonzero(self.column("loss/penalty") > 0)

    @cached_property
    def measured(self) -> NDArray[np.intp]:
        """Rows with a finite penalty, zero or not."""
        return np.flatnonzero(np.isfinite(self.column("loss/penalty")))

    @cached_property
    def episodes(self) -> tuple[Episode, ...]:
        """Stretches of penalties above zero; a step without a measured penalty neither continues nor ends one."""
        penalty, found, current = self.column("loss/penalty"), [], list[int]()
        for row in self.measured.tolist():
            if penalty[row] > 0:
                current.append(row)
            elif current:
                found.append(self._episode(current, ended=True))
                current = []
        if current:
            found.append(self._episode(current, ended=False))
        return tuple(found)

    def _episode(self, rows: list[int], *, ended: bool) -> Episode:
        total = float(self.column("loss/penalty")[rows].sum())
        return Episode(tuple(rows), int(self.steps[rows[0]]), int(self.steps[rows[-1]]), total, not ended)

    def stretches(self, rows: tuple[int, ...]) -> list[Stretch]:
        """Return the phases of the rows in order; rows without a phase are left out."""
        found: list[Stretch] = []
        for row in rows:
            name, step = self.phases[row], int(self.steps[row])
            if not name:
                continue
            if found and found[-1].phase == name:
                found[-1] = found[-1]._replace(last=step)
            else:
                found.append(Stretch(name, step, step))
        return found

    def aftermath(self, episode: Episode) -> Aftermath | None:
        """Return KL after an episode's first step; None if KL was not measured there or after it."""
        kl, start = self.column("kl/mean"), episode.rows[0]
        later = np.flatnonzero((self.steps > episode.first) & (self.steps <= episode.first + AFTER) & np.isfinite(kl))
        if not later.size or not np.isfinite(kl[start]):
            return None
        end, least = int(later[-1]), int(later[np.argmin(kl[later])])
        reached = int(self.steps[end])
        return Aftermath(
            float(kl[start]),
            reached,
            float(kl[end]),
            float(kl[least]),
            int(self.steps[least]),
            reached == episode.first + AFTER,
        )
