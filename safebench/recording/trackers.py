"""Run each tracker in a thread and a child process, so that a failing tracker cannot affect the training.

A thread inside a hanging library cannot be ended, and such libraries also block the exit of the process. A child
process can be ended.
"""

from __future__ import annotations

import difflib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

import safebench
from safebench.errors import MissingResource, UsageError
from safebench.recording.files import make_folder, storing
from safebench.recording.jsonl import Sample
from safebench.recording.metrics_csv import Row
from safebench.telemetry import quiet

TRACKERS: dict[str, str] = {
    "wandb": "wandb",
    "wandb-online": "wandb",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
}
"""Names that ``recording.trackers`` accepts, and the package that each needs."""


@dataclass(frozen=True)
class RunInfo:
    """Data about the run that a tracker receives at its start. ``config`` holds the resolved settings."""

    folder: str
    experiment: str
    model: str
    seed: int
    run_id: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run within its project."""
        return f"{self.experiment}/seed-{self.seed}"

    def place(self, tracker: str) -> Path:
        """Return the folder of the run for the tracker's files."""
        return Path(self.folder) / "trackers" / tracker


class Tracker(Protocol):
    """Another destination of a run's metrics. All but ``abandon`` are called from one thread, in this order."""

    def start(self, info: RunInfo) -> None:
        """Start empty; the kept rows and samples of a resumed run are sent again."""

    def log(self, step: int, row: Row) -> None:
        """Take the row of one step."""

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Take the samples of one step, before or after its row."""

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Close the run, whose final status is ``summary["status"]``; return a line for the user or None."""

    def abandon(self) -> None:
        """End all running work at once; called from another thread."""


class NullTracker:
    """Tracks nothing; also the base class of trackers that implement only some calls."""

    def start(self, info: RunInfo) -> None:
        """Do nothing."""

    def log(self, step: int, row: Row) -> None:
        """Do nothing."""

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Return None."""
        return None

    def abandon(self) -> None:
        """Do nothing."""


def check_names(names: Sequence[str]) -> None:
    """Raise ``UsageError`` for an unknown tracker, ``MissingResource`` for one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, n=1)
            hint = f"Did you mean {close[0]}?" if close else None
            raise UsageError(f"there is no tracker {name!r}; there are: {', '.join(TRACKERS)}", hint)
        if find_spec(TRACKERS[name]) is None:
            package = TRACKERS[name]
            raise MissingResource(
                f"tracker {name} needs the package {package}, which is not installed",
                f"Install it (pip install {package}), or leave {name} out: metrics.csv is written in any case.",
            )


def present(row: Row) -> dict[str, float | int | str]:
    """Return the measured values of the row."""
    return {key: value for key, value in row.items() if value is not None}


History = Sequence[tuple[int, Row, Sequence[Sample]]]


@dataclass(frozen=True)
class Limits:
    """Seconds that a call may take, and number of calls that may wait, before a tracker is dropped."""

    start: float = 90.0
    call: float = 60.0
    finish: float = 90.0
    waiting: int = 2000


class Guarded:
    """A tracker in its own thread. Only ``finish`` waits, and no method raises.

    If a call raises, if it takes too long, or if too many calls wait, the tracker is abandoned and ``failure`` holds
    the reason. Every later call does nothing.
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
        """Start the tracker, then send it the rows and samples of the steps that a resumed run kept."""

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
        """Finish the tracker within the time limit; return its closing line, None if it has none or failed."""

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
            except Exception as error:  # no exception of a tracker's library may end a training
                self._drop(f"{type(error).__name__}: {error}")

    def _drop(self, reason: str) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = reason
        self._tracker.abandon()
        self._done.set()


class TrackerEnded(Exception):
    """The child process has ended; the message is its exception or the last line of its log."""


class ProcessTracker:
    """Runs the tracker ``name`` in a child process; each call waits for the answer. Its output goes to a log file.

    If this process is killed, the child reads the end of its input, closes the run as interrupted, and exits.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._child: subprocess.Popen[str] | None = None
        self._log_file: Path | None = None

    def start(self, info: RunInfo) -> None:
        """Start the child and the tracker in it."""
        self._log_file = info.place(f"{self._name}.log")
        make_folder(self._log_file.parent)
        environment = dict(os.environ)
        quiet(environment)
        ours = str(Path(safebench.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [ours, environment.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "safebench.recording.tracker_child", self._name]
        with storing(self._log_file), self._log_file.open("w", encoding="utf-8") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env=environment,
                start_new_session=True,  # Ctrl-C must reach only the training, which then finishes its trackers
            )
        self._ask("start", info=asdict(info))

    def log(self, step: int, row: Row) -> None:
        """Pass on the row of one step."""
        self._ask("log", step=step, row=dict(row))

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Pass on the samples of one step."""
        self._ask("samples", step=step, rows=[asdict(sample) for sample in rows])

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Finish the tracker and wait for the child to end."""
        closing = self._ask("finish", summary=dict(summary))
        self._close()
        return closing

    def abandon(self) -> None:
        """Kill the child and the processes that it started."""
        child = self._child
        if child is not None and child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _ask(self, call: str, **arguments: Any) -> str | None:
        child = self._child
        if child is None:
            raise TrackerEnded("it was never started")
        try:
            stdin, stdout = _pipes(child)
            stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        content = json.loads(answer) if answer else {"error": self._last_words()}
        if "error" in content:
            self._close()
            raise TrackerEnded(f"{content['error']} (see {self._log_file})")
        closing: str | None = content["closing"]
        return closing

    def _close(self) -> None:
        child = self._child
        if child is not None:
            stdin, stdout = _pipes(child)
            with suppress(BrokenPipeError):
                stdin.close()
            stdout.close()
            child.wait()

    def _last_words(self) -> str:
        lines: list[str] = []
        if self._log_file is not None and self._log_file.exists():
            lines = self._log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def _pipes(child: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert child.stdin is not None and child.stdout is not None
    return child.stdin, child.stdout
