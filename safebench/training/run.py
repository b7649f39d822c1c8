"""Build one run from its settings and drive it to a final status."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import torch

from safebench import config, registry
from safebench.config.schema import Settings
from safebench.errors import Interrupted, SafebenchError, UsageError
from safebench.metrics import MEASURED
from safebench.models.assemble import World, assemble
from safebench.models.libraries import quiet_libraries
from safebench.recording import checkpoints, layout, manifest
from safebench.recording.jsonl import Sample
from safebench.recording.layout import Status
from safebench.recording.recorder import NullRecorder, Recorder
from safebench.training.distributed import Processes
from safebench.training.loop import Learner, Loop, Row

IfExists = Literal["resume", "skip", "error", "overwrite"]
Report = Callable[[Mapping[str, Any], list[str]], None]
"""Called with each finished row and the kinds of crash that began at it."""

ENDED = (Status.FINISHED, Status.UNSTABLE)


@dataclass(frozen=True)
class RunOutcome:
    """The final status of a run (``finished`` or ``unstable``) and its last figures."""

    folder: Path
    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True
    """False if the run had ended before and nothing was done."""


def execute(
    settings: Settings, root: Path, *, if_exists: IfExists = "resume", progress: Report | None = None
) -> RunOutcome:
    """Execute one run, or the rest of it, and return its outcome.

    Raises ``Interrupted`` after Ctrl-C or a termination signal, with the state saved. Other ``SafebenchError``s
    say what is missing or wrong. A number that is not finite ends the run as ``unstable``.
    """
    folder = config.run_folder(root, settings)
    processes = Processes(settings.compute)
    done = _settle_existing(folder, settings, if_exists, processes)
    if done is not None:
        return done
    with quiet_libraries(), _stop_requests() as stop:
        learner = _learner(settings, assemble(settings, processes.device), processes)
        return RunDriver(settings, folder, learner, processes, progress, stop).to_the_end()


def _learner(settings: Settings, world: World, processes: Processes) -> Learner:
    """Return the learner: ``Loop`` with the algorithm, or a trainer that is an algorithm by itself."""
    entry = registry.find("algorithms", settings.algorithm)
    if entry.kind != "trainer":
        return Loop(settings, world, processes)
    made: Learner = entry.load()(settings, world, processes)
    return made


def _settle_existing(folder: Path, settings: Settings, if_exists: IfExists, processes: Processes) -> RunOutcome | None:
    """Handle an existing folder; return its outcome if nothing is left to do, else None."""
    record = layout.read_status(folder) if folder.exists() else None
    if record is None:
        return None
    if if_exists == "error":
        raise UsageError(f"{folder} exists", "Use --if-exists resume, skip or overwrite.")
    if if_exists == "overwrite":
        processes.wait()
        if processes.main:
            shutil.rmtree(folder)
        processes.wait()
        return None
    _refuse_stale(folder, settings)
    if record.state in ENDED:
        _refuse_other_files(folder, settings)
    if if_exists == "skip" or record.state in ENDED:
        return RunOutcome(folder, record.state.value, dict(record.summary), fresh=False)
    return None


def _refuse_stale(folder: Path, settings: Settings) -> None:
    """Raise ``UsageError`` if the folder's run was made with other settings."""
    there = config.load(folder / "config.yaml")
    if config.settings_hash(there) != config.settings_hash(settings):
        keys = ", ".join(key for key, _, _ in config.changes(settings, there))
        raise UsageError(
            f"{folder} was made with other settings ({keys})",
            "Move it away, or use --if-exists overwrite to make it anew.",
        )


def _refuse_other_files(folder: Path, settings: Settings) -> None:
    """Raise ``UsageError`` if an ended run used other prompts, models or reward functions of the same names."""
    before = manifest.read(folder).get("hashes") or {}
    try:
        now = manifest.hashes_of(settings)
    except SafebenchError:
        return  # the files that it was made from are missing, so there is nothing to compare
    # Without a local copy, a hub id stands for the files; hashes of files have 64 digits.
    known = [key for key, found in now.items() if {len(found), len(before.get(key, ""))} == {64}]
    if other := [key for key in known if now[key] != before[key]]:
        raise UsageError(
            f"{folder} was made with other files: {', '.join(other)} changed since",
            "Move it away, or use --if-exists overwrite to make it anew.",
        )


class RunDriver:
    """Runs a learner to its end and records its steps. Only the first of several processes records."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        learner: Learner,
        processes: Processes,
        progress: Report | None,
        stop: threading.Event,
    ) -> None:
        self.settings, self.folder, self.learner, self.processes = settings, folder, learner, processes
        self.progress, self.stop = progress, stop
        self.stopped = False
        self.last: dict[str, Any] = {}

    def to_the_end(self) -> RunOutcome:
        """Restore or start the run, then learn until the last step, a stop request, or a number that is not finite."""
        with self._open() as recorder:
            self.learner.learn(lambda row, samples: self._step(recorder, row, samples))
            if self.learner.broken is not None:
                return self._finish(recorder, Status.UNSTABLE, self.learner.broken)
            if self.stopped:
                self._interrupt(recorder)
            if self.processes.main:
                part = "model" if self.settings.model.lora is None else "adapter"
                self.learner.world.policy.save(self.folder / part)
            return self._finish(recorder, Status.FINISHED, "")

    def _interrupt(self, recorder: Recorder | NullRecorder) -> NoReturn:
        """Save the run's state and raise ``Interrupted``, which says how to continue."""
        self._save(recorder)
        self._finish(recorder, Status.INTERRUPTED, "stopped by the user")
        how = "continue" if self.learner.resumable else "begin anew: this arm cannot continue a run"
        raise Interrupted(
            f"stopped after step {self.learner.step_number} of {self.settings.update.steps}",
            f"Call the same command again to {how}.",
        )

    @contextlib.contextmanager
    def _open(self) -> Iterator[Recorder | NullRecorder]:
        """Continue from the newest checkpoint, or measure the initial policy and begin."""
        found = checkpoints.load_latest(self.folder / "checkpoints")
        self.processes.wait()
        if found is not None:
            self.learner.restore(found[1])
            with self._recorder(self._manifest(manifest.read(self.folder)), found[0]) as recorder:
                yield recorder
            return
        first = self.learner.evaluate()
        self.learner.sigma0 = first.reward_std or 1.0
        measured = {"sigma0": self.learner.sigma0, "judge_sigma0": first.judge_std}
        begun = (self.folder / "metrics.csv").exists()
        with self._recorder(self._manifest(measured), -1 if begun else None) as recorder:
            self._tell(recorder)
            self._record(recorder, dict.fromkeys(MEASURED) | {"step": 0} | first.columns, first.samples)
            if not first.reward_std:
                recorder.notice("every held-out reply has the same reward: sigma_0 is taken as 1")
            yield recorder

    @contextlib.contextmanager
    def _recorder(self, content: dict[str, Any], after: int | None) -> Iterator[Recorder | NullRecorder]:
        if not self.processes.main:
            yield NullRecorder(self.settings, content)
            return
        with Recorder.open(self.folder, self.settings, content, after_step=after) as recorder:
            yield recorder

    def _step(self, recorder: Recorder | NullRecorder, row: Row, samples: list[Sample]) -> bool:
        """Evaluate, record and save as due after a step; return whether to continue."""
        step, steps = self.learner.step_number, self.settings.update.steps
        if self.learner.broken is None and (step % self.settings.evaluation.every == 0 or step == steps):
            evaluation = self.learner.evaluate()
            row |= evaluation.columns
            row |= self.learner.clock.take()
            samples = [*samples, *evaluation.samples]
        self._record(recorder, row, samples)
        if self.learner.broken is None and (step % self.settings.recording.checkpoint_every == 0 or step == steps):
            self._save(recorder)
        self.stopped = self.learner.broken is None and self._asked_to_stop()
        return self.learner.broken is None and not self.stopped

    def _record(self, recorder: Recorder | NullRecorder, row: Row, samples: list[Sample]) -> None:
        self.last |= {key: value for key, value in row.items() if value is not None}
        begun = [event.kind for event in recorder.step(row) if event.end is None]
        recorder.samples(self.learner.step_number, samples)
        if self.progress is not None and self.processes.main:
            self.progress(row, begun)

    def _save(self, recorder: Recorder | NullRecorder) -> None:
        if self.learner.resumable:
            recorder.checkpoint(self.learner.step_number, self.learner.state())
        self.processes.wait()

    def _asked_to_stop(self) -> bool:
        """Return whether any process was asked to stop, so that all stop at the same step."""
        return any(self.processes.gather([self.stop.is_set()]))

    def _tell(self, recorder: Recorder | NullRecorder) -> None:
        """Record the notices of policy, prompts and rewards, each one once."""
        for text in self.learner.world.notices:
            if text not in recorder.notices:
                recorder.notice(text)

    def _finish(self, recorder: Recorder | NullRecorder, state: Status, message: str) -> RunOutcome:
        self._tell(recorder)
        recorder.finish(state, self.last, message)
        return RunOutcome(self.folder, state.value, dict(self.last))

    def _manifest(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        policy, device = self.learner.world.policy, self.processes.device
        return manifest.collect(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            hashes=manifest.hashes_of(self.settings),
            sigma0=measured["sigma0"],
            vocabulary=policy.vocabulary,
            command=config.command(self.settings),
            measured={
                "judge_sigma0": measured["judge_sigma0"],
                "paired": self.learner.paired,
                "templated": policy.tokenizer.chat_template is not None,
                "processes": self.processes.count,
                "threads": torch.get_num_threads(),
                "trainable_parameters": sum(p.numel() for p in policy.trainable().values()),
            },
        )


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or termination signal into a request to stop after the step; a second one kills the run."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        for wanted in before:
            signal.signal(wanted, before[wanted])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
