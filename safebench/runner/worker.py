"""Runs a worker of the pool: reads one run per line from stdin, does it, and reports lines of JSON on stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from safebench.config.schema import Settings
from safebench.recording import layout
from safebench.runner.pool import one
from safebench.telemetry import quiet


class Pipe:
    """A view that sends progress to the pool through a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        """Return the view; there is nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to undo."""

    def started(self, label: str, steps: int) -> None:
        """Do nothing: the pool knows that the run begins."""

    def ended(self, label: str, text: str) -> None:
        """Do nothing: the pool gets the whole result."""

    def note(self, text: str) -> None:
        """Write the text to stderr."""
        print(text, file=sys.stderr)

    def row(self, label: str, row: Mapping[str, Any], events: list[str]) -> None:
        """Send the row."""
        self.send({"row": dict(row), "events": events})

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; if the pipe has no reader left, stop as if asked to."""
        try:
            print(json.dumps(message), file=self._stream, flush=True)
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Do the runs that stdin names, until it ends."""
    quiet()
    # Libraries' output goes to stderr, because stdout is the pipe.
    pipe = Pipe(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    try:
        for line in sys.stdin:
            _do(json.loads(line), pipe)
    except KeyboardInterrupt:
        return


def _do(task: dict[str, Any], pipe: Pipe) -> None:
    settings = Settings.model_validate(task["settings"])
    result = one(settings, Path(task["root"]), pipe, task["if_exists"])
    pipe.send(
        {
            "folder": str(result.folder),
            "status": result.status,
            "summary": result.summary,
            "fresh": result.fresh,
            "message": result.message,
            "hint": result.hint,
            "exit_code": result.exit_code,
            "notices": record.notices if (record := layout.read_status(result.folder)) and result.fresh else (),
        }
    )


if __name__ == "__main__":
    main()
