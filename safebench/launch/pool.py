"""Several runs at once: worker processes that each do one run after another and report on a pipe."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from safebench.launch.outcome import Name, Result, interrupted, label, waiting
from safebench.launch.progress import View, say_end
from safebench.launch.turns import IfExists
from safebench.settings import Settings

STDERR_LINES = 40
"""Last lines of a worker's stderr that are shown when it dies."""

Message = dict[str, Any]


class Worker:
    """One worker process and the run it is doing."""

    def __init__(self, environment: dict[str, str], messages: queue.Queue[tuple[Worker, Message | None]]) -> None:
        # A session of its own: Ctrl-C reaches us alone, and we pass it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "safebench.launch.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        self.index: int | None = None
        self._messages = messages
        self._last_words: deque[str] = deque(maxlen=STDERR_LINES)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._overhear)]
        for thread in self._threads:
            thread.start()

    def give(self, index: int, task: Message) -> None:
        """Hand over a run. A worker that has died says so by the end of its output."""
        self.index = index
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """Let the worker end when it has nothing to do, and wait for it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for end in (self.process.stdout, self.process.stderr):
            if end is not None:
                end.close()

    def last_words(self) -> str:
        """Return the end of what a dead worker wrote to stderr, and how it died."""
        self.process.wait()
        self._threads[1].join()
        return "".join(self._last_words) + f"the worker process ended with code {self.process.returncode}"

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._messages.put((self, json.loads(line)))
        self._messages.put((self, None))

    def _overhear(self) -> None:
        assert self.process.stderr is not None
        self._last_words.extend(self.process.stderr)


class Pool:
    """Deals runs out to workers and turns what they say into progress and results."""

    def __init__(self, root: Path, if_exists: IfExists, view: View, name: Name = label) -> None:
        self.root, self.if_exists, self.view, self.name = root, if_exists, view, name
        self.messages: queue.Queue[tuple[Worker, Message | None]] = queue.Queue()
        self.workers: list[Worker] = []
        self.stopping = 0

    def run(self, runs: Sequence[Settings], jobs: int) -> list[Result]:
        """Do all runs, ``jobs`` at a time; return their results in order."""
        self.todo = deque(enumerate(runs))
        self.results: dict[int, Result] = {}
        self.runs = runs
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for _ in range(jobs):
                self._engage()
            while any(worker.index is not None for worker in self.workers):
                self._take(*self.messages.get())
        finally:
            for worker in self.workers:
                if worker.index is not None:
                    worker.process.kill()
                worker.dismiss()
            for number, handler in before.items():
                signal.signal(number, handler)
        return [self.results.get(i) or waiting(settings, self.root) for i, settings in enumerate(runs)]

    def _engage(self) -> None:
        if self.todo and not self.stopping:
            worker = Worker(self._environment(), self.messages)
            self.workers.append(worker)
            self._next(worker)

    def _next(self, worker: Worker) -> None:
        worker.index = None
        if not self.todo or self.stopping:
            return
        index, settings = self.todo.popleft()
        self.view.started(self.name(settings), settings.update.steps)
        task = {"settings": settings.model_dump(mode="json"), "root": str(self.root), "if_exists": self.if_exists}
        worker.give(index, task)

    def _take(self, worker: Worker, message: Message | None) -> None:
        if worker.index is None:
            return
        settings = self.runs[worker.index]
        if message is not None and "row" in message:
            self.view.row(self.name(settings), message["row"], message["events"])
        elif message is not None:
            for notice in message.pop("notices"):
                self.view.note(f"{self.name(settings)}: {notice}")
            self._settle(worker, Result(settings, Path(message.pop("folder")), **message))
            self._next(worker)
        else:
            stopped = interrupted(settings, self.root)
            died = Result(settings, stopped.folder, "failed", {}, True, worker.last_words(), None, 1)
            self._settle(worker, stopped if self.stopping else died)
            self._engage()

    def _settle(self, worker: Worker, result: Result) -> None:
        assert worker.index is not None
        self.results[worker.index] = result
        worker.index = None
        say_end(self.view, result, self.name)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Ask the workers to stop after their step; at the second time of asking, end them."""
        self.stopping += 1
        busy = [worker for worker in self.workers if worker.index is not None and worker.process.poll() is None]
        if self.stopping == 1:
            self.view.note("stopping: each run finishes its step and saves its state")
        for worker in busy:
            worker.process.send_signal(signal.SIGINT if self.stopping == 1 else signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        """Return a worker's environment: ours, and the way to this package wherever it was started from."""
        home = str(Path(__file__).parents[2])
        path = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH", "")) if part)
        # What a worker says is read as UTF-8, whatever the terminal takes.
        return os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8:replace"}
