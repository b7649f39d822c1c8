"""Keeps a tracker that raises or hangs from reaching the training: a thread, a bounded queue, time limits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safebench.recording.metrics_csv import Row
from safebench.recording.samples import Sample
from safebench.recording.trackers import RunInfo, Tracker

History = Sequence[tuple[int, Row, Sequence[Sample]]]


@dataclass(frozen=True)
class Limits:
    """Seconds a call may take, and how many calls may wait, before a tracker is dropped."""

    start: float = 90.0
    call: float = 60.0
    finish: float = 90.0
    waiting: int = 2000


class Guarded:
    """A tracker in a thread of its own. No method but ``finish`` ever waits, and none raises.

    When a call raises, takes too long, or too many calls wait, the tracker is abandoned and ``failure`` says
    why; every later call does nothing.
    """

    def __init__(self, name: str, tracker: Tracker, limits: Limits | None = None) -> None:
        self.name = name
        self.failure: str | None = None
        self._tracker = tracker
        self._limits = limits or Limits()
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(self._limits.waiting)
        self._due: tuple[str, float, float] | None = None
        self._closing: str | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        # A daemon: a call that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)

    def start(self, info: RunInfo, history: History = ()) -> None:
        """Start the tracker, then tell it the rows and samples of the steps that a resumed run kept."""

        def begin() -> None:
            self._call("start", self._limits.start, lambda: self._tracker.start(info))
            for step, row, samples in history:
                self._log(step, row)
                if samples:
                    self._samples(step, samples)

        self._submit(begin)
        self._thread.start()

    def log(self, step: int, row: Row) -> None:
        """Pass on the row of one step."""
        self._submit(lambda: self._log(step, row))

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Pass on the samples of one step."""
        self._submit(lambda: self._samples(step, rows))

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Finish the tracker, waiting no longer than the limit; return its closing line, None if none or failed."""

        def end() -> None:
            def call() -> None:
                self._closing = self._tracker.finish(summary)

            self._call("finish", self._limits.finish, call)
            self._done.set()

        self._submit(end)
        if self.failure is None and not self._done.wait(self._limits.finish) and self.failure is None:
            self._drop(f"did not finish within {self._limits.finish:g} s")
        return self._closing if self.failure is None else None

    def _log(self, step: int, row: Row) -> None:
        self._call("log", self._limits.call, lambda: self._tracker.log(step, row))

    def _samples(self, step: int, rows: Sequence[Sample]) -> None:
        self._call("samples", self._limits.call, lambda: self._tracker.samples(step, rows))

    def _submit(self, task: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        due = self._due
        if due is not None and time.monotonic() > due[1]:
            self._drop(f"{due[0]} took more than {due[2]:g} s")
            return
        try:
            self._queue.put_nowait(task)
        except queue.Full:
            self._drop(f"{self._limits.waiting} calls were waiting")

    def _call(self, what: str, limit: float, action: Callable[[], None]) -> None:
        if self.failure is None:
            self._due = (what, time.monotonic() + limit, limit)
            action()
            self._due = None

    def _work(self) -> None:
        while self.failure is None and not self._done.is_set():
            task = self._queue.get()
            try:
                task()
            except Exception as error:  # whatever a tracker's library may throw: none of it may end a training
                self._drop(f"{type(error).__name__}: {error}")

    def _drop(self, reason: str) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = reason
        self._tracker.abandon()
        self._done.set()
