"""trackio, on this machine only. The only file that imports trackio."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from safebench.recording.jsonl import Sample
from safebench.recording.metrics_csv import Row
from safebench.recording.trackers import NullTracker, RunInfo, present

_PROJECT = "safebench"
_COLUMNS = ["row", "prompt", "reply", "reward", "judge"]


class TrackioTracker(NullTracker):
    """A trackio project in the run's own folder, ``trackers/trackio``. Wants a process of its own: see ``start``."""

    def start(self, info: RunInfo) -> None:
        """Begin the trackio run in place of what an earlier part of this run left.

        trackio fixes its folder when it is imported, sends to a Space or server that the environment names, and
        asks the hub for the user's name when it finds a token: the environment is cleared of all that first.
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
        """Log what the row measured."""
        measured = present(row)
        del measured["step"]  # a word that trackio keeps for itself
        self._run.log(measured, step=step)

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Log the samples of one step as a table."""
        import pandas

        frame = pandas.DataFrame(
            [[one.row, one.prompt, one.reply, one.reward, one.judge] for one in rows], columns=_COLUMNS
        )
        self._run.log({"samples": self._trackio.Table(dataframe=frame)}, step=step)

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Log the summary's numbers under ``summary/`` and close the run; return how to look at it."""
        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        if numbers:
            self._run.log({f"summary/{key}": value for key, value in numbers.items()})
        self._run.finish()
        return f"trackio: TRACKIO_DIR={shlex.quote(str(self._place))} trackio show --project {_PROJECT}"
