"""samples.jsonl: some replies of each batch with their prompts and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safebench.recording import jsonl
from safebench.recording.files import Appender


@dataclass(frozen=True)
class Sample:
    """One reply: its row in the batch, its texts, its proxy reward, and the judge's where it was asked."""

    row: int
    prompt: str
    reply: str
    reward: float
    judge: float | None = None
    split: str = "train"
    """``train``, or ``heldout`` at an evaluation."""
    messages: list[dict[str, Any]] | None = None
    """The conversation that ``prompt`` is the transcript of; a line has it only where there is one."""


class SamplesWriter:
    """Appends samples to samples.jsonl."""

    def __init__(self, path: Path) -> None:
        self._lines = Appender(path)

    def write(self, step: int, rows: Sequence[Sample]) -> None:
        """Append the samples of one step, one line each."""
        for sample in rows:
            record = {"step": step, **asdict(sample)}
            if sample.messages is None:
                del record["messages"]
            self._lines.write(jsonl.format_line(record))

    def sync(self) -> None:
        """Wait until all samples are on the disk."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def drop_after(path: Path, step: int) -> dict[int, list[Sample]]:
    """Cut samples.jsonl behind ``step`` and return what stays, by step."""
    kept: dict[int, list[Sample]] = {}
    for record in jsonl.drop_after(path, step):
        judge = record["judge"]
        sample = Sample(
            record["row"],
            record["prompt"],
            record["reply"],
            float(record["reward"]),
            None if judge is None else float(judge),
            record["split"],
            record.get("messages"),
        )
        kept.setdefault(record["step"], []).append(sample)
    return kept
