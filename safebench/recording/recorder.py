"""Record one run as the only writer of its folder, and add the crash columns to its rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from safebench.config.schema import Settings
from safebench.crashes import inert
from safebench.crashes.detect import SPEC, Blind, Detectors, Event
from safebench.crashes.inert import Inert, Inertia
from safebench.errors import BadResource, Instability, Interrupted, MissingResource, SafebenchError
from safebench.metrics import CRASH_KINDS
from safebench.recording import checkpoints, layout, metrics_csv
from safebench.recording.files import FolderLock, make_folder, now, storing
from safebench.recording.jsonl import EventsWriter, Sample, SamplesWriter, drop_samples_after
from safebench.recording.layout import Status, StatusRecord
from safebench.recording.metrics_csv import MetricsWriter, Row, Value, format_row, parse_row, step_of
from safebench.recording.trackers import Guarded, History, Limits, ProcessTracker, RunInfo, Tracker, check_names

CRASH_KEYS = tuple(f"crash/{kind}" for kind in CRASH_KINDS)


class Watch:
    """Detectors with the constants of one run.

    Planned steps and reply limit come from its settings. The spreads ``sigma0`` and, if measured, ``judge_sigma0``, and
    the size of the ``vocabulary`` come from its manifest.
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
        """Add the crash columns, which ``row`` must not have; return the row and the events that begin or end."""
        given = [key for key in CRASH_KEYS if key in row]
        if given:
            raise SafebenchError(f"crash columns are the recorder's to fill: {', '.join(given)}")
        read_back = parse_row(format_row({**row, **dict.fromkeys(CRASH_KEYS)}))  # the values that a replay reads
        events = self._detectors.update(read_back)
        self._inertia.update(read_back)
        return {**row, **self._columns()}, events

    def replay(self, rows: Iterable[Row]) -> list[tuple[int, list[Event]]]:
        """Process rows that were recorded before and return their events by step.

        Raises ``BadResource`` if the recorded crash columns differ from the counts of these detectors: the rows were
        then recorded under another specification, or for another number of steps.
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
        """Return the episodes that are still open at the end of the run."""
        return self._detectors.finish()

    def beyond_before_training(self) -> tuple[Blind, ...]:
        """Return the kinds that are not watched, or only in part, because the initial policy was beyond a limit."""
        return self._detectors.beyond_before_training

    def inert(self) -> tuple[Inert, ...]:
        """Return the loss terms that have been inert so far."""
        return self._inertia.found()

    def _columns(self) -> dict[str, Value]:
        return {f"crash/{kind}": count for kind, count in self._detectors.counts().items()}


def to_stderr(text: str) -> None:
    """Print a line for the user to stderr, where progress is printed."""
    print(text, file=sys.stderr, flush=True)


class NullRecorder:
    """Writes nothing, but detects the same events; for the processes of a data-parallel run that do not record."""

    def __init__(self, settings: Settings, manifest: Mapping[str, Any], rows: Sequence[Row] = ()) -> None:
        self._watch = Watch(settings, manifest)
        self._watch.replay(rows)

    def step(self, row: Row) -> list[Event]:
        """Return the events that begin or end with this row."""
        return self._watch.complete(row)[1]

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Do nothing."""

    def checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    @property
    def notices(self) -> tuple[str, ...]:
        """Always empty."""
        return ()

    def notice(self, text: str) -> None:
        """Do nothing."""

    def finish(self, state: Status, summary: Mapping[str, Any] | None = None, message: str = "") -> None:
        """Do nothing."""


class Recorder:
    """Writes all files of a run and passes the data to the trackers; create it with ``open``."""

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: Settings,
        manifest: Mapping[str, Any],
        after_step: int | None = None,
        *,
        trackers: Mapping[str, Tracker] | None = None,
        limits: Limits | None = None,
        notify: Callable[[str], None] = to_stderr,
    ) -> Recorder:
        """Open the folder of a new run or, with ``after_step``, of a run to resume.

        Resuming after step n drops every row, sample, event and checkpoint later than n, restores the crash detectors
        by a replay of the remaining rows, and appends; -1 drops everything. ``trackers`` by name replace those in
        ``settings.recording.trackers``. ``limits`` bound the time and the waiting calls of every tracker. ``notify`` is
        called with each line for the user.

        Raises ``UsageError`` if the folder of a new run already holds one or another process is writing it,
        ``BadResource`` if the run in it cannot be resumed, ``MissingResource`` if it cannot be written.
        """
        check_names(settings.recording.trackers)
        make_folder(folder)
        with storing(folder), ExitStack() as stack:
            stack.enter_context(FolderLock(folder))
            rows: list[dict[str, metrics_csv.Value]] = []
            kept: dict[int, list[Sample]] = {}
            if after_step is None:
                identity = layout.begin(folder, settings, manifest)
            else:
                identity = layout.go_on(folder, settings, manifest, after_step)
                rows = metrics_csv.drop_after(folder / "metrics.csv", after_step)
                kept = drop_samples_after(folder / "samples.jsonl", after_step)
                checkpoints.drop_after(folder / "checkpoints", after_step)
            recorder = cls(folder, settings, identity, rows, notify, stack)
            history = [(step, row, kept.get(step, [])) for row in rows for step in [metrics_csv.step_of(row)]]
            chosen = trackers
            if chosen is None:
                chosen = {name: ProcessTracker(name) for name in settings.recording.trackers}
            recorder._start(chosen, history, limits)
            recorder._stack = stack.pop_all()
        return recorder

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        manifest: Mapping[str, Any],
        rows: Sequence[Row],
        notify: Callable[[str], None],
        stack: ExitStack,
    ) -> None:
        self.folder = folder
        self._settings, self._manifest, self._notify, self._stack = settings, manifest, notify, stack
        last = metrics_csv.step_of(rows[-1]) if rows else None
        self._watch = Watch(settings, manifest)
        replayed = self._watch.replay(rows)
        self._csv = MetricsWriter(folder / "metrics.csv", last)
        stack.callback(self._csv.close)
        self._samples = SamplesWriter(folder / "samples.jsonl")
        stack.callback(self._samples.close)
        self._events = EventsWriter(folder / "events.jsonl", replayed)
        stack.callback(self._events.close)
        self._trackers: list[Guarded] = []
        self._finished = False
        self._unwatched_told: set[str] = set()
        started = str(manifest.get("started") or now())
        self._status = StatusRecord(Status.RUNNING, last or 0, settings.update.steps, started, now())
        self._write_status()

    def _start(self, trackers: Mapping[str, Tracker], history: History, limits: Limits | None) -> None:
        info = RunInfo(
            str(self.folder),
            self._settings.experiment,
            self._settings.model.name,
            self._settings.seed,
            str(self._manifest["run_id"]),
            self._settings.model_dump(mode="json"),
            self._manifest,
        )
        for name, tracker in trackers.items():
            guarded = Guarded(name, tracker, limits)
            guarded.start(info, history)
            self._trackers.append(guarded)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._finished:
                return
            state, code, message = ending(error)
            try:
                self._finish(state, {}, message, code)
            except MissingResource as second:  # a full disk ended the run: the first error is reported
                if error is None:
                    raise
                error.add_note(f"The run's status could not be written either: {second}")

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user so far."""
        return self._status.notices

    def step(self, row: Row) -> list[Event]:
        """Record one row with every key of the schema but the crash columns; return the events that begin or end at it.

        When this returns, the operating system has the row, so that it survives the end of this process.
        """
        self._csv.check_order(row)
        full, events = self._watch.complete(row)
        read_back = self._csv.write(full)
        step = metrics_csv.step_of(full)
        self._events.write(step, events)
        for tracker in self._trackers:
            tracker.log(step, read_back)
        self._status = replace(self._status, step=step)
        for kind, reasons, _ in self._watch.beyond_before_training():
            if kind not in self._unwatched_told:
                self._unwatched_told.add(kind)
                self.notice(f"not watched: {kind} ({', '.join(reasons)})")
        self._note_failures()
        self._write_status()
        return events

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Record replies of one step; call it before or after ``step`` for the same step."""
        self._samples.write(step, rows)
        for tracker in self._trackers:
            tracker.samples(step, rows)

    def checkpoint(self, step: int, state: Mapping[str, Any]) -> Path:
        """Save all state after ``step`` (see ``checkpoints.save``), prune older checkpoints, and return the new path.

        Rows and samples are synced to the disk first, so that a checkpoint is never ahead of them.
        """
        self._sync()
        place = self.folder / "checkpoints"
        path = checkpoints.save(place, step, state)
        checkpoints.prune(place, self._settings.recording.keep_checkpoints)
        return path

    def notice(self, text: str) -> None:
        """Show a notice to the user and keep it in the status."""
        self._status = replace(self._status, notices=(*self._status.notices, text))
        self._notify(text)
        self._write_status()

    def finish(self, state: Status, summary: Mapping[str, Any] | None = None, message: str = "") -> None:
        """Record how the run ended, once. Trackers get time to close; their closing lines are shown to the user."""
        if self._finished:
            raise SafebenchError(f"the run in {self.folder} is finished already: {self._status.state}")
        self._finish(state, summary or {}, message, state.exit_code)

    def _finish(self, state: Status, summary: Mapping[str, Any], message: str, code: int | None) -> None:
        if state in (Status.FINISHED, Status.UNSTABLE):  # other runs may resume, with their open episodes
            self._events.write(self._status.step, self._watch.finish(), "open")
            for term in self._watch.inert():
                self.notice(inert.sentence(term))
        self._sync()
        self._status = replace(self._status, state=state, summary=summary, message=message, exit_code=code)
        self._write_status(durable=True)  # before the trackers close, which may take long
        self._finished = True
        told = {**summary, "status": state.value, "step": self._status.step, "message": message}
        for tracker in self._trackers:
            closing = tracker.finish(told)
            if closing is not None:
                self._notify(closing)
        if self._note_failures():
            self._write_status(durable=True)

    def _note_failures(self) -> bool:
        failed = [tracker for tracker in self._trackers if tracker.failure is not None]
        for tracker in failed:
            self._trackers.remove(tracker)
            self.notice(
                f"tracker {tracker.name} dropped at step {self._status.step}: {tracker.failure}; "
                "metrics.csv goes on without it"
            )
        return bool(failed)

    def _sync(self) -> None:
        self._csv.sync()
        self._samples.sync()
        self._events.sync()

    def _write_status(self, *, durable: bool = False) -> None:
        self._status = replace(self._status, updated=now())
        layout.write_status(self.folder, self._status, durable=durable)


def ending(error: BaseException | None) -> tuple[Status, int | None, str]:
    """Return final status, exit code and message of a run whose recorder was exited before ``finish``."""
    if error is None:
        return Status.INTERRUPTED, Status.INTERRUPTED.exit_code, "left before its last step"
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, KeyboardInterrupt | Interrupted | SystemExit):
        return Status.INTERRUPTED, Status.INTERRUPTED.exit_code, message
    if isinstance(error, Instability):
        return Status.UNSTABLE, Status.UNSTABLE.exit_code, message
    code = error.exit_code if isinstance(error, SafebenchError) else Status.FAILED.exit_code
    return Status.FAILED, code, message
