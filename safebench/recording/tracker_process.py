"""A tracker in a child process, told one JSON object per line: it can be killed, and its library stays out of ours.

A thread inside a hanging library cannot be ended, and such libraries wait at the process's exit besides; a process can.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import safebench
from safebench.recording.files import make_folder, storing
from safebench.recording.metrics_csv import Row
from safebench.recording.samples import Sample
from safebench.recording.trackers import RunInfo
from safebench.telemetry import quiet


class TrackerEnded(Exception):
    """The child process is gone; the message is its exception or the last line of its log."""


class ProcessTracker:
    """Runs the tracker ``name`` in a child; each call waits for the child's answer. What it prints goes to a log file.

    Should this process be killed, the child sees its input end, closes the run as interrupted, and ends.
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
                start_new_session=True,  # Ctrl-C is for the training, which then finishes its trackers
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
        """Kill the child and what it started."""
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
