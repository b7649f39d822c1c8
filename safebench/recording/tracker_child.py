"""Run a tracker (W&B, TensorBoard, trackio) in a child process: one call per input line, one answer line per call."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from safebench.recording.jsonl import Sample
from safebench.recording.layout import Status
from safebench.recording.metrics_csv import Row
from safebench.recording.trackers import NullTracker, RunInfo, Tracker, present

_COLUMNS = ["step", "row", "prompt", "reply", "reward", "judge"]


class WandbTracker(NullTracker):
    """One W&B run per recorded run: group = experiment, name = experiment and seed, W&B's step = the run's step.

    A resumed run is sent again from its first row under the same id, so that one offline folder holds the whole run.
    Online, the server ignores the steps that it already has.
    """

    def __init__(self, online: bool) -> None:
        self._online = online
        self._table: list[list[Any]] = []
        self._shown = 0
        self._step = 0

    def start(self, info: RunInfo) -> None:
        """Start the W&B run under ``trackers/wandb``; it replaces the files of an earlier part of this run."""
        place = info.place("wandb")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        # W&B stages tables for upload in the data folder: an offline run is complete only together with it.
        os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(place.resolve())
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "safebench"),
            group=info.experiment,
            name=info.name,
            id=info.run_id,
            resume="allow" if self._online else None,
            mode="online" if self._online else "offline",
            dir=str(place.parent),
            config={**info.config, "manifest": dict(info.manifest)},
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def log(self, step: int, row: Row) -> None:
        """Log the measured values of the row."""
        self._step = step
        self._run.log(present(row), step=step)

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Add to the table of samples; it is logged each time it has doubled, and at the end.

        One table per step would be one file per step, and W&B shows one table better than a thousand.
        """
        self._step = max(self._step, step)
        self._table += [[step, one.row, one.prompt, one.reply, one.reward, one.judge] for one in rows]
        if len(self._table) >= 2 * self._shown:
            self._show()

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Log the whole table, write the summary, close the run; return the command that uploads it, or its address."""
        if len(self._table) > self._shown:
            self._show()
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=Status(summary["status"]).exit_code)
        if self._online:
            return f"W&B: {self._run.url}"
        return f"W&B run kept offline; to upload it: wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"

    def _show(self) -> None:
        self._shown = len(self._table)
        self._run.log({"samples": self._wandb.Table(columns=_COLUMNS, data=self._table)}, step=self._step)


class TensorBoardTracker(NullTracker):
    """Writes numbers as scalars, and names, samples, settings and summary as texts, under ``trackers/tensorboard``."""

    def start(self, info: RunInfo) -> None:
        """Open a new event file; it replaces the files of an earlier part of this run."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.text import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        place = info.place("tensorboard")
        shutil.rmtree(place, ignore_errors=True)
        self._event, self._summary, self._text_pb = event_pb2.Event, summary_pb2.Summary, summary_v2.text_pb
        self._names: dict[str, str] = {}
        self._step = 0
        self._place = place
        self._writer = EventFileWriter(str(place))
        self._text("config", f"```json\n{json.dumps(info.config, indent=2)}\n```", 0)

    def log(self, step: int, row: Row) -> None:
        """Write the measured values of the row; write a name only when it changes."""
        self._step = step
        values = []
        for key, value in present(row).items():
            if isinstance(value, str):
                if self._names.get(key) != value:
                    self._text(key, value, step)
                self._names[key] = value
            else:
                values.append(self._summary.Value(tag=key, simple_value=value))
        self._write(self._summary(value=values), step)
        self._writer.flush()

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Write the samples of one step as one text."""
        texts = [f"{one.reward:.3f}\n\n> {one.prompt}\n\n{one.reply}" for one in rows]
        self._text("samples", "\n\n---\n\n".join(texts), step)

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Write the summary and close the file; return the command that shows it."""
        self._text("summary", f"```json\n{json.dumps(summary, indent=2)}\n```", self._step)
        self._writer.close()
        return f"TensorBoard: tensorboard --logdir {self._place}"

    def _text(self, tag: str, text: str, step: int) -> None:
        self._write(self._text_pb(tag, text), step)

    def _write(self, summary: Any, step: int) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))


_PROJECT = "safebench"
_TABLE = ["row", "prompt", "reply", "reward", "judge"]


class TrackioTracker(NullTracker):
    """A trackio project in the run's own folder, ``trackers/trackio``. It needs its own process: see ``start``."""

    def start(self, info: RunInfo) -> None:
        """Start the trackio run; it replaces the files of an earlier part of this run.

        trackio fixes its folder at import, sends data to a Space or server that the environment names, and asks the hub
        for the user's name if it finds a token. These variables are therefore removed from the environment first.
        """
        place = info.place("trackio")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name in [name for name in os.environ if name.startswith("TRACKIO_") or name == "HF_TOKEN"]:
            del os.environ[name]
        os.environ.update(TRACKIO_DIR=str(place.resolve()), HF_HUB_OFFLINE="1")
        import trackio

        self._trackio, self._place = trackio, place
        self._run = trackio.init(
            project=_PROJECT,
            name=info.name,
            group=info.experiment,
            config={**info.config, "manifest": dict(info.manifest)},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, row: Row) -> None:
        """Log the measured values of the row."""
        measured = present(row)
        del measured["step"]  # trackio reserves this key
        self._run.log(measured, step=step)

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Log the samples of one step as a table."""
        import pandas

        frame = pandas.DataFrame(
            [[one.row, one.prompt, one.reply, one.reward, one.judge] for one in rows], columns=_TABLE
        )
        self._run.log({"samples": self._trackio.Table(dataframe=frame)}, step=step)

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Log the summary's numbers under ``summary/`` and close the run; return the command that shows it."""
        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        if numbers:
            self._run.log({f"summary/{key}": value for key, value in numbers.items()})
        self._run.finish()
        return f"trackio: TRACKIO_DIR={shlex.quote(str(self._place))} trackio show --project {_PROJECT}"


def make(name: str) -> Tracker:
    """Return the tracker called ``name``; its library is imported when it starts."""
    if name in ("wandb", "wandb-online"):
        return WandbTracker(online=name == "wandb-online")
    if name == "tensorboard":
        return TensorBoardTracker()
    if name == "trackio":
        return TrackioTracker()
    raise SystemExit(f"there is no tracker {name!r}")


def dispatch(tracker: Tracker, message: dict[str, Any]) -> str | None:
    """Make the call that ``message`` describes; return the closing line of ``finish``, else None."""
    call = message["call"]
    if call == "finish":
        return tracker.finish(message["summary"])
    if call == "start":
        tracker.start(RunInfo(**message["info"]))
    elif call == "log":
        tracker.log(message["step"], message["row"])
    elif call == "samples":
        tracker.samples(message["step"], [_sendable(Sample(**row)) for row in message["rows"]])
    return None


def _sendable(sample: Sample) -> Sample:
    """Replace text that UTF-8 cannot encode (half a character, from a byte-level tokenizer): libraries fail on it."""
    prompt, reply = (text.encode(errors="replace").decode() for text in (sample.prompt, sample.reply))
    return replace(sample, prompt=prompt, reply=reply)


def _tell(answers: TextIO) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return a hook for uncaught exceptions that reports them to the parent, after the traceback on stderr."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        print(json.dumps({"error": f"{kind.__name__}: {error}"}), file=answers, flush=True)

    return hook


def main(name: str) -> None:
    """Answer calls until ``finish`` or the end of the input; an exception ends the process and is the last answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of a library must not be read as an answer
    sys.excepthook = _tell(answers)
    tracker = make(name)
    started = False
    for line in sys.stdin:
        message = json.loads(line)
        closing = dispatch(tracker, message)
        started = True
        print(json.dumps({"closing": closing}), file=answers, flush=True)
        if message["call"] == "finish":
            return
    if started:
        tracker.finish({"status": Status.INTERRUPTED.value})


if __name__ == "__main__":
    main(sys.argv[1])
