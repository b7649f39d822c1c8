"""The child's side of tracker_process: reads one call per line, answers one line per call."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, TextIO

from safebench.recording.jsonl import Sample
from safebench.recording.layout import Status
from safebench.recording.trackers import RunInfo, Tracker


def make(name: str) -> Tracker:
    """Return the tracker called ``name``; its library is imported when it starts."""
    if name in ("wandb", "wandb-online"):
        from safebench.recording.tracker_wandb import WandbTracker

        return WandbTracker(online=name == "wandb-online")
    if name == "tensorboard":
        from safebench.recording.tracker_tensorboard import TensorBoardTracker

        return TensorBoardTracker()
    if name == "trackio":
        from safebench.recording.tracker_trackio import TrackioTracker

        return TrackioTracker()
    raise SystemExit(f"there is no tracker {name!r}")


def dispatch(tracker: Tracker, message: dict[str, Any]) -> str | None:
    """Make the call that ``message`` holds; return the closing line of ``finish``, else None."""
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
    """Replace what UTF-8 cannot say (half a character, from a byte-level tokenizer): libraries stumble over it."""
    prompt, reply = (text.encode(errors="replace").decode() for text in (sample.prompt, sample.reply))
    return replace(sample, prompt=prompt, reply=reply)


def _tell(answers: TextIO) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return a hook for uncaught exceptions that names them to the parent, after the trace on stderr."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        print(json.dumps({"error": f"{kind.__name__}: {error}"}), file=answers, flush=True)

    return hook


def main(name: str) -> None:
    """Serve until ``finish`` or the end of the input; an exception ends the process and is the last answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
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
