"""Completes rows with the crash columns: the detectors, fed exactly what a reader of metrics.csv would feed them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from safebench.crashes.detect import SPEC, Blind, Detectors, Event
from safebench.crashes.inert import Inert, Inertia
from safebench.errors import BadResource, SafebenchError
from safebench.metrics import CRASH_KINDS
from safebench.recording.metrics_csv import Row, Value, format_row, parse_row, step_of
from safebench.settings import Settings

CRASH_KEYS = tuple(f"crash/{kind}" for kind in CRASH_KINDS)


class Watch:
    """Detectors with the constants of one run: planned steps and reply limit from its settings, the spreads
    ``sigma0`` and, where measured, ``judge_sigma0``, and the size of the ``vocabulary`` from its manifest.
    """

    def __init__(self, settings: Settings, manifest: Mapping[str, Any]) -> None:
        missing = [key for key in ("sigma0", "vocabulary") if key not in manifest]
        if missing:
            raise SafebenchError(f"the manifest lacks {' and '.join(missing)}, which the crash detectors need")
        self._detectors = Detectors(
            SPEC,
            settings.update.steps,
            manifest["sigma0"],
            manifest["vocabulary"],
            judge_sigma0=manifest.get("judge_sigma0"),
            reply_limit=settings.rollout.reply_tokens,
        )
        self._inertia = Inertia()

    def complete(self, row: Row) -> tuple[dict[str, Value], list[Event]]:
        """Return the row with its crash columns (which it may not bring along), and the events that begin or end."""
        given = [key for key in CRASH_KEYS if key in row]
        if given:
            raise SafebenchError(f"crash columns are the recorder's to fill: {', '.join(given)}")
        read_back = parse_row(format_row({**row, **dict.fromkeys(CRASH_KEYS)}))  # what a replay will see
        events = self._detectors.update(read_back)
        self._inertia.update(read_back)
        return {**row, **self._columns()}, events

    def replay(self, rows: Iterable[Row]) -> list[tuple[int, list[Event]]]:
        """Feed rows that were recorded before and return their events by step.

        Raises ``BadResource`` where the recorded crash columns are not what these detectors find: the rows were
        recorded under another specification, or for another number of steps.
        """
        found = []
        for row in rows:
            step = step_of(row)
            found.append((step, self._detectors.update(row)))
            self._inertia.update(row)
            for key, count in self._columns().items():
                if row[key] != count:
                    raise BadResource(
                        f"at step {step}, {key} was recorded as {row[key]} but is {count} by this version's detectors",
                        "Start this run again with --if-exists overwrite.",
                    )
        return found

    def finish(self) -> list[Event]:
        """Return the episodes that the run's end finds open."""
        return self._detectors.finish()

    def beyond_before_training(self) -> tuple[Blind, ...]:
        """Return the kinds that are not watched, or only in part, because the untouched policy was beyond a limit."""
        return self._detectors.beyond_before_training

    def inert(self) -> tuple[Inert, ...]:
        """Return the loss terms that moved nothing so far."""
        return self._inertia.found()

    def _columns(self) -> dict[str, Value]:
        return {f"crash/{kind}": count for kind, count in self._detectors.counts().items()}
