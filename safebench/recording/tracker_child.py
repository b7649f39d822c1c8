"""The child's side of tracker_process: reads one call per line, answers one line per call."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from safebench.recording.samples import Sample
from safebench.recording.status import Status
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
        tracker.samples(message["step"], [Sample(**row) for row in message["rows"]])
    return None


def main(name: str) -> None:
    """Serve until ``finish`` or the end of the input; an exception ends the process, its trace goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
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
