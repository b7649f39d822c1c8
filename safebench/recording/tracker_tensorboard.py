"""TensorBoard event files, by tensorboard's own writer. The only file that imports tensorboard."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from safebench.recording.jsonl import Sample
from safebench.recording.metrics_csv import Row
from safebench.recording.trackers import NullTracker, RunInfo, present


class TensorBoardTracker(NullTracker):
    """Scalars for numbers, texts for names, samples, settings and the summary, under ``trackers/tensorboard``."""

    def start(self, info: RunInfo) -> None:
        """Open a new event file in place of what an earlier part of this run left."""
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
        """Write what the row measured, names only where they change."""
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
        """Write the summary and close the file; return how to look at it."""
        self._text("summary", f"```json\n{json.dumps(summary, indent=2)}\n```", self._step)
        self._writer.close()
        return f"TensorBoard: tensorboard --logdir {self._place}"

    def _text(self, tag: str, text: str, step: int) -> None:
        self._write(self._text_pb(tag, text), step)

    def _write(self, summary: Any, step: int) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
