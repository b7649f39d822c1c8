"""Carries out many runs, in turn in this process or at once in worker processes; a failed run stops no other run."""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from safebench.config import run_folder
from safebench.config.schema import Settings
from safebench.errors import SafebenchError, UsageError
from safebench.runner.progress import (
    Name,
    Result,
    View,
    ended_before,
    interrupted,
    label,
    say_end,
    waiting,
)
from safebench.user_code import blamed

IfExists = Literal["resume", "skip", "error", "overwrite"]


def in_turn(runs: Sequence[Settings], root: Path, view: View, if_exists: IfExists, name: Name = label) -> list[Result]:
    """Do the runs one after another; after an interruption no further run begins."""
    results: list[Result] = []
    for settings in runs:
        if any(result.status == "interrupted" for result in results):
            results.append(waiting(settings, root))
            continue
        view.started(name(settings), settings.update.steps)
        results.append(one(settings, root, view, if_exists, name))
        say_end(view, results[-1], name)
    return results


def one(settings: Settings, root: Path, view: View, if_exists: IfExists, name: Name = label) -> Result:
    """Do one run in this process; return any failure as a result, so that the next run can begin."""
    folder = run_folder(root, settings)
    forget_peaks()
    try:
        # Imported here because it imports torch: an error about wrong settings must not wait for that.
        from safebench.training.run import execute

        outcome = execute(
            settings,
            root,
            if_exists=if_exists,
            progress=lambda row, events: view.row(name(settings), row, events),
        )
    except KeyboardInterrupt:
        return interrupted(settings, root)
    except SafebenchError as error:
        status = "interrupted" if error.exit_code == 130 else "failed"
        return Result(settings, folder, status, {}, True, str(error), error.hint, error.exit_code)
    except Exception as error:  # the boundary between runs: the error is shown in full, the next run begins
        if (blame := blamed(error)) is not None:
            return Result(settings, folder, "failed", {}, True, str(blame), blame.hint, blame.exit_code)
        return Result(settings, folder, "failed", {}, True, traceback.format_exc(), None, 1)
    code = 4 if outcome.status == "unstable" else 0
    return Result(settings, outcome.folder, outcome.status, outcome.summary, outcome.fresh, "", None, code)


def forget_peaks() -> None:
    """Release what an earlier run left in memory, so that the next run reports its own peak of memory."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # Linux: writing 5 sets the process's high-water mark to its current memory. Other systems have no such switch.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


STDERR_LINES = 40
"""Number of last lines of a worker's stderr that are shown when it dies."""

Message = dict[str, Any]


class Worker:
    """A worker process and its current run."""

    def __init__(self, environment: dict[str, str], messages: queue.Queue[tuple[Worker, Message | None]]) -> None:
        # A session of its own: Ctrl-C reaches only this process, which passes it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "safebench.runner.worker"],
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
        """Hand over a run. The death of a worker is detected at the end of its output."""
        self.index = index
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """Let the worker end once it has nothing to do, and wait for it."""
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
        """Return the end of a dead worker's stderr, and its exit code."""
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
    """Distributes runs to workers, and turns their messages into progress and results."""

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
        """Ask the workers to stop after their current step; on a second request, kill them."""
        self.stopping += 1
        busy = [worker for worker in self.workers if worker.index is not None and worker.process.poll() is None]
        if self.stopping == 1:
            self.view.note("stopping: each run finishes its step and saves its state")
        for worker in busy:
            worker.process.send_signal(signal.SIGINT if self.stopping == 1 else signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        """Return a worker's environment: this process's, with a path to this package from any working directory."""
        home = str(Path(__file__).parents[2])
        path = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH", "")) if part)
        # A worker's output is read as UTF-8, whatever the terminal's encoding.
        return os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8:replace"}


def launch(
    runs: Sequence[Settings],
    root: Path,
    view: View,
    *,
    jobs: int = 1,
    if_exists: IfExists = "resume",
    name: Name = label,
) -> list[Result]:
    """Do all runs, ``jobs`` at a time, and return their results in order.

    After Ctrl-C the current runs save their state and stop, and no further run begins: their results say
    ``interrupted`` and ``waiting``. ``name`` returns a run's name on the screen: no two runs may have the same name.
    """
    if jobs > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--jobs and several processes per run do not go together", "Drop --jobs, or accelerate launch."
        )
    keep = if_exists in ("resume", "skip")
    # Checked here, so that a command whose runs have all ended need not load torch.
    before = [ended_before(settings, root) if keep else None for settings in runs]
    todo = [settings for settings, done in zip(runs, before, strict=True) if done is None]
    with view:
        for done in filter(None, before):
            say_end(view, done, name)
        if jobs > 1 and len(todo) > 1:
            made = iter(Pool(root, if_exists, view, name).run(todo, min(jobs, len(todo))))
        else:
            made = iter(in_turn(todo, root, view, if_exists, name))
    return [next(made) if done is None else done for done in before]
