"""W&B: offline in W&B's own format unless asked to go online. The only file that imports wandb."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safebench.recording.jsonl import Sample
from safebench.recording.layout import Status
from safebench.recording.metrics_csv import Row
from safebench.recording.trackers import NullTracker, RunInfo, present

_COLUMNS = ["step", "row", "prompt", "reply", "reward", "judge"]


class WandbTracker(NullTracker):
    """One W&B run per run of ours: group = experiment, name = experiment and seed, W&B's step = ours.

    A resumed run is told again from its first row under the same id, so that one offline folder holds all of it;
    online, the server leaves out the steps it has.
    """

    def __init__(self, online: bool) -> None:
        self._online = online
        self._table: list[list[Any]] = []
        self._shown = 0
        self._step = 0

    def start(self, info: RunInfo) -> None:
        """Begin the W&B run under ``trackers/wandb``; what an earlier part of this run left there is replaced."""
        place = info.place("wandb")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        # Tables are staged for upload in the data folder: an offline run is complete only together with it.
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
        """Log what the row measured."""
        self._step = step
        self._run.log(present(row), step=step)

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Add to the table of samples; it is logged each time it has doubled, and at the end.

        A table per step would be a file per step, and W&B shows one table better than a thousand.
        """
        self._step = max(self._step, step)
        self._table += [[step, one.row, one.prompt, one.reply, one.reward, one.judge] for one in rows]
        if len(self._table) >= 2 * self._shown:
            self._show()

    def finish(self, summary: Mapping[str, Any]) -> str | None:
        """Log the whole table, write the summary, close the run; return how to upload it, or where it is."""
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
