"""Defines the result of a requested run, and shows progress on stderr as a live line or as plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from safebench.config import load, run_folder, settings_hash
from safebench.config.schema import Settings
from safebench.errors import BadResource
from safebench.metrics import ALARM_KINDS
from safebench.recording import layout
from safebench.recording.layout import Status

Name = Callable[[Settings], str]
"""Returns a run's name on the screen."""


@dataclass(frozen=True)
class Result:
    """The result of one requested run."""

    settings: Settings
    folder: Path
    status: str
    """finished, unstable, interrupted, failed, or ``waiting`` if an interruption came before the run began."""
    summary: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True
    """False if the run had ended before and nothing was done."""
    message: str = ""
    hint: str | None = None
    exit_code: int = 0


def label(settings: Settings) -> str:
    """Return a run's short name for the screen."""
    again = f" replicate {settings.compute.replicate}" if settings.compute.replicate else ""
    return f"{settings.experiment}{again} seed {settings.seed}"


def ended_before(settings: Settings, root: Path) -> Result | None:
    """Return the result of a run that had ended with the same settings, or None if there is something to do."""
    folder = run_folder(root, settings)
    record = layout.read_status(folder)
    if record is None or record.state not in (Status.FINISHED, Status.UNSTABLE):
        return None
    try:
        made = load(folder / "config.yaml")
    except BadResource:
        return None  # the run itself reports what is wrong with the file
    if settings_hash(made) != settings_hash(settings):
        return None
    code = record.state.exit_code or 0
    return Result(settings, folder, record.state.value, dict(record.summary), False, "", None, code)


def waiting(settings: Settings, root: Path) -> Result:
    """Return the result of a run that did not begin."""
    return Result(settings, run_folder(root, settings), "waiting", exit_code=130)


def interrupted(settings: Settings, root: Path) -> Result:
    """Return the result of a run that was stopped outside its steps."""
    hint = "Call the same command again to continue."
    return Result(settings, run_folder(root, settings), "interrupted", {}, True, "stopped by the user", hint, 130)


def exit_code(results: Sequence[Result]) -> int:
    """Return the command's exit code: a single run's own; for several runs, 0 unless one was stopped or failed."""
    if len(results) == 1:
        return results[0].exit_code
    codes = {result.exit_code for result in results}
    # An interruption first: it may be the only reason why others failed. Then this package's faults, then the user's.
    return next((code for code in (130, 1, 3, 2) if code in codes), 0)


Row = Mapping[str, Any]

SHOWN = (("reward", "reward/mean"), ("judge", "eval/judge"), ("KL", "kl/mean"), ("entropy", "entropy/mean"))
"""What a progress line shows: the word and the metric's key."""

SILENCE = 60.0
"""Seconds without output after which a log gets a line in any case."""


class View(Protocol):
    """Shows the progress of several runs. A label names one run, such as ``safe seed 0``."""

    def __enter__(self) -> Self:
        """Start the display."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display, and leave the screen as a terminal user expects it."""
        ...

    def started(self, label: str, steps: int) -> None:
        """Show that a run of that many steps begins."""
        ...

    def row(self, label: str, row: Row, events: list[str]) -> None:
        """Show a finished row of metrics and the kinds of crash that began at it."""
        ...

    def ended(self, label: str, text: str) -> None:
        """Show how the run ended."""
        ...

    def note(self, text: str) -> None:
        """Show a text beside the runs."""
        ...


class Latest:
    """The newest value of each shown metric; a judge that is measured only at some steps stays visible in between."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def update(self, row: Row) -> str:
        """Take a row's values and return the line, such as ``reward 0.31  KL 0.020``."""
        for word, key in SHOWN:
            value = row.get(key)
            if isinstance(value, int | float):
                self._values[word] = float(value)
        return "  ".join(f"{word} {self._values[word]:.3g}" for word, _ in SHOWN if word in self._values)


class PlainView:
    """Writes lines for logs and pipes: a run's beginning, every tenth of it or minute, its crashes and its end."""

    def __init__(self, stream: TextIO, clock: Any = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._steps: dict[str, int] = {}
        self._begun: dict[str, float] = {}
        self._first: dict[str, tuple[int, float]] = {}
        self._spoken: dict[str, float] = {}
        self._latest: dict[str, Latest] = {}

    def __enter__(self) -> Self:
        """Return the view; there is nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to undo."""

    def started(self, label: str, steps: int) -> None:
        """Write that the run begins."""
        self._steps[label], self._begun[label], self._latest[label] = steps, self._clock(), Latest()
        self.note(f"{label}: {steps} steps")

    def row(self, label: str, row: Row, events: list[str]) -> None:
        """Write the row if it is a tenth's or the first, or after a minute without output; write each crash."""
        step, steps, now = int(row["step"]), self._steps[label], self._clock()
        text = self._latest[label].update(row)
        first, since = self._first.setdefault(label, (step, now))
        for event in events:
            self.note(f"{label}: step {step}: {told_event(event)}")
        silent = now - self._spoken.get(label, now)
        if step * 10 // steps != (step - 1) * 10 // steps or step == first or silent >= SILENCE:
            self._spoken[label] = now
            left = (now - since) / (step - first) * (steps - step) if step > first else None
            parts = [f"{label}: step {step}/{steps}", text, f"{duration(left)} left" if left else ""]
            self.note("  ".join(part for part in parts if part))

    def ended(self, label: str, text: str) -> None:
        """Write how the run ended and how long it took."""
        took = f" ({duration(self._clock() - self._begun.pop(label))})" if label in self._begun else ""
        self._first.pop(label, None)
        self.note(f"{label}: {text}{took}")

    def note(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)


class SilentView(PlainView):
    """Writes nothing; for the other processes of a data-parallel run."""

    def note(self, text: str) -> None:
        """Drop the line."""


class LiveView:
    """Shows a bar per current run, and one over all runs if there are several."""

    def __init__(self, runs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            # stdout is for data; libraries' output on stderr goes above the bars.
            redirect_stdout=False,
            # The thread that changes something also draws it: if a second thread draws while a line is written above
            # the bars, stale bars remain.
            auto_refresh=False,
        )
        self._runs = runs
        self._tasks: dict[str, Any] = {}
        self._latest: dict[str, Latest] = {}
        self._all = self._progress.add_task("all runs", total=runs, text="") if runs > 1 else None

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, and leave the last state on the screen."""
        self._progress.stop()

    def started(self, label: str, steps: int) -> None:
        """Add the run's bar."""
        self._tasks[label] = self._progress.add_task(label, total=steps, text="loading")
        self._latest[label] = Latest()
        self._progress.refresh()

    def row(self, label: str, row: Row, events: list[str]) -> None:
        """Move the run's bar; write crashes above the bars."""
        step, task = int(row["step"]), self._tasks[label]
        self._progress.update(task, completed=step, text=self._latest[label].update(row))
        for event in events:
            self.note(f"{label}: step {step}: {told_event(event)}")
        self._progress.refresh()

    def ended(self, label: str, text: str) -> None:
        """Remove the run's bar (but not that of a single run) and write how the run ended."""
        if self._all is not None:
            self._progress.advance(self._all)
            if label in self._tasks:
                self._progress.remove_task(self._tasks.pop(label))
        self._progress.refresh()
        self.note(f"{label}: {text}")

    def note(self, text: str) -> None:
        """Write a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)


def told_event(kind: str) -> str:
    """Return the text for an event that begins; an alarm is marked as one."""
    return f"alarm: {kind}" if kind in ALARM_KINDS else kind


def say_end(view: View, result: Result, name: Name = label) -> None:
    """Show how a run ended; for a failed run, show the reason and what to do."""
    called = name(result.settings)
    if result.status == "failed":
        view.ended(called, "failed")
        view.note(f"error: {called}: {result.message}")
        if result.hint:
            view.note(f"hint: {result.hint}")
    else:
        view.ended(called, result.status if result.fresh else f"{result.status} before, kept")


def is_main() -> bool:
    """Return whether this process writes output: it is alone, or the first of those `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def open_view(runs: int, stream: TextIO | None = None) -> View:
    """Return the suitable view: live on a terminal that can move its cursor, plain lines elsewhere."""
    if not is_main():
        return SilentView(sys.stderr)
    stream = sys.stderr if stream is None else stream
    if stream is sys.stderr and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return LiveView(runs)
    return PlainView(stream)


def duration(seconds: float) -> str:
    """Return a duration as text: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
