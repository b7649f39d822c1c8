"""Detect crashes row by row, in live runs and in recorded files alike, without I/O.

A kind of crash has a watched quantity, a limit, and a window. An *episode* begins at the first step at which the
quantity is beyond the limit. It counts once the quantity has stayed beyond the limit at every measured step for
``window`` steps. It ends at the last such step. ``docs/evidence.md`` gives the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safebench.crashes.signals import SCALES, SPEC, Blind, CrashSpec, Reading, Row, Signals, number
from safebench.metrics import CRASH_KINDS

__all__ = [
    "CRASH_KINDS", "SCALES", "SPEC", "Blind", "CrashSpec", "Detectors", "Event", "Row", "Survey", "detect",
    "detect_scales", "survey",
]  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One episode of ``kind``, from step ``start`` to step ``end``, both inclusive.

    ``end`` is None while the episode is open. ``peak`` is the worst value of the watched quantity, and ``depth`` is how
    far that value was beyond the limit, in the same unit.
    """

    kind: str
    start: int
    end: int | None
    peak: float
    depth: float

    @property
    def steps(self) -> int | None:
        """Length in steps; None while open."""
        return None if self.end is None else self.end - self.start + 1


@dataclass(frozen=True)
class Survey:
    """Every episode of a run by scale, and the kinds that its rows could not show, or only in part."""

    events: dict[float, list[Event]]
    blind: tuple[Blind, ...]


class _Episode:
    """The streak of one kind: pending until its window is full, then open, then closed."""

    def __init__(self, kind: str, window: int, points: int = 1) -> None:
        self.kind, self.count = kind, 0
        self._window, self._needed = window, points
        self._clear()

    def _clear(self) -> None:
        self.open, self._start, self._last = False, 0, 0
        self.streak = 0  # measured steps of the streak so far
        self._peak, self._depth = 0.0, -math.inf

    def event(self, end: int | None) -> Event:
        return Event(self.kind, self._start, end, self._peak, self._depth)

    def beyond(self, step: int, value: float, excess: float) -> Event | None:
        """Extend the streak at ``step``, where the quantity is beyond its limit; return the event if it opens here."""
        if not self.streak:
            self._start = step
        self.streak, self._last = self.streak + 1, step
        if excess > self._depth:
            self._peak, self._depth = value, excess
        if self.open or step - self._start + 1 < self._window or self.streak < self._needed:
            return None
        self.open, self.count = True, self.count + 1
        return self.event(None)

    def within(self) -> Event | None:
        """End the streak, because the quantity is within its limit; return the event if it closes here."""
        closed = self.event(self._last) if self.open else None
        self._clear()
        return closed


class Detectors:
    """Watches a run row by row.

    ``sigma0`` and ``judge_sigma0`` are the reward's and the judge's spread under the initial policy, ``vocabulary`` is
    the number of tokens, and ``reply_limit`` is the longest reply in tokens. A kind whose constant is None cannot be
    watched; ``unmeasured`` names these kinds. ``scale`` makes every threshold more severe by this factor.
    """

    def __init__(
        self,
        spec: CrashSpec,
        planned_steps: int,
        sigma0: float | None,
        vocabulary: int | None,
        scale: float = 1.0,
        *,
        judge_sigma0: float | None = None,
        reply_limit: int | None = None,
    ) -> None:
        if not (math.isfinite(scale) and scale > 0.0):
            raise ValueError(f"scale must be positive and finite, not {scale}")
        self.spec, self.scale = spec, scale
        self._signals = Signals(spec, planned_steps, sigma0, vocabulary, judge_sigma0, reply_limit)
        windows = _windows(spec)
        self._episodes = {
            kind: _Episode(
                kind,
                spec.shrunk(windows.get(kind, 1), planned_steps),
                spec.judge_points if kind == "judge_crash" else 1,
            )
            for kind in CRASH_KINDS
        }
        self._streaks: set[str] = set()  # kinds that are currently beyond their limit
        self._step: int | None = None

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Kinds that cannot be watched because a constant of the run is unknown."""
        return self._signals.unmeasured

    @property
    def blind(self) -> tuple[Blind, ...]:
        """Kinds that the rows so far could not show, or only in part."""
        return self._signals.blind()

    @property
    def beyond_before_training(self) -> tuple[Blind, ...]:
        """Kinds with a part that is not watched because its first value was already beyond a fixed limit."""
        return self._signals.beyond_before_training()

    def update(self, row: Row) -> list[Event]:
        """Process one row and return the events that open or close at it; an opening event has ``end`` None.

        Raises ``ValueError`` if the row's step is not greater than the last one.
        """
        step = next_step(row, self._step)
        return self.take(step, self._signals.read(step, row))

    def take(self, step: int, readings: Sequence[Reading]) -> list[Event]:
        """Do the same as ``update`` from readings, so that detectors of several scales can share one reader."""
        self._step = step
        beyond: dict[str, tuple[float, float]] = {}
        for reading in readings:
            excess = reading.excess(self.scale)
            if excess is not None and (reading.kind not in beyond or excess > beyond[reading.kind][1]):
                beyond[reading.kind] = (reading.value, excess)
        if not beyond and not self._streaks:
            return []
        events = []
        for kind in dict.fromkeys(reading.kind for reading in readings):
            event = None
            if kind in beyond:
                self._streaks.add(kind)
                event = self._episodes[kind].beyond(step, *beyond[kind])
            elif kind in self._streaks:
                self._streaks.remove(kind)
                event = self._episodes[kind].within()
            if event is not None:
                events.append(event)
        return events

    def finish(self) -> list[Event]:
        """Return the episodes still open, and ``unrecovered`` for an open ``reward_crash``."""
        events = [episode.event(None) for episode in self._episodes.values() if episode.open]
        for event in [event for event in events if event.kind == "reward_crash"]:
            self._episodes["unrecovered"].count = 1
            events.append(Event("unrecovered", event.start, None, event.peak, event.depth))
        return events

    def counts(self) -> dict[str, int]:
        """Return the number of episodes begun so far, for every kind."""
        return {kind: episode.count for kind, episode in self._episodes.items()}


def detect(
    rows: Iterable[Row],
    planned_steps: int,
    sigma0: float | None,
    vocabulary: int | None,
    scale: float = 1.0,
    *,
    judge_sigma0: float | None = None,
    reply_limit: int | None = None,
    spec: CrashSpec = SPEC,
) -> list[Event]:
    """Return every episode of a whole run: first the closed ones in order of closing, then those open at its end."""
    found = detect_scales(
        rows, planned_steps, sigma0, vocabulary, (scale,), judge_sigma0=judge_sigma0, reply_limit=reply_limit, spec=spec
    )
    return found[scale]


def detect_scales(
    rows: Iterable[Row],
    planned_steps: int,
    sigma0: float | None,
    vocabulary: int | None,
    scales: Iterable[float] = SCALES,
    *,
    judge_sigma0: float | None = None,
    reply_limit: int | None = None,
    spec: CrashSpec = SPEC,
) -> dict[float, list[Event]]:
    """Return the result of ``detect`` for each scale, reading the rows once."""
    return survey(
        rows, planned_steps, sigma0, vocabulary, scales, judge_sigma0=judge_sigma0, reply_limit=reply_limit, spec=spec
    ).events


def survey(
    rows: Iterable[Row],
    planned_steps: int,
    sigma0: float | None,
    vocabulary: int | None,
    scales: Iterable[float] = SCALES,
    *,
    judge_sigma0: float | None = None,
    reply_limit: int | None = None,
    spec: CrashSpec = SPEC,
) -> Survey:
    """Return every episode for each scale, and the kinds that could not be watched, reading the rows once."""
    signals = Signals(spec, planned_steps, sigma0, vocabulary, judge_sigma0, reply_limit)
    watching = {scale: Detectors(spec, planned_steps, sigma0, vocabulary, scale) for scale in scales}
    events: dict[float, list[Event]] = {scale: [] for scale in watching}
    last: float | None = None
    for row in rows:
        last = step = next_step(row, last)
        readings = signals.read(step, row)
        for scale, detectors in watching.items():
            events[scale] += [event for event in detectors.take(step, readings) if event.end is not None]
    found = {scale: events[scale] + detectors.finish() for scale, detectors in watching.items()}
    return Survey(found, signals.blind())


def next_step(row: Row, last: float | None) -> int:
    """Return the row's step; raise ``ValueError`` if it is not greater than ``last``."""
    value = number(row.get("step"))
    if value is None or (last is not None and value <= last):
        raise ValueError(f"rows must come with rising steps: {value} after {last}")
    return int(value)


def _windows(spec: CrashSpec) -> dict[str, int]:
    """Return the number of steps that each kind's condition must last; kinds that are not named need one step."""
    return {
        "reward_crash": spec.reward_window,
        "judge_crash": spec.reward_window,
        "kl_runaway": spec.runaway_window,
        "entropy_collapse": spec.entropy_window,
        "entropy_explosion": spec.entropy_window,
        "degenerate": spec.degenerate_window,
        "length_collapse": spec.length_window,
        "length_blowup": spec.length_window,
        "value_divergence": spec.value_window,
    }
