"""Write and read samples.jsonl and events.jsonl: one JSON object per line, each with its step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safebench.crashes.detect import Event
from safebench.errors import BadResource
from safebench.recording.files import Appender, storing, write_atomic


def plain(value: Any) -> Any:
    """Return ``value`` with non-finite floats, at any depth, as the texts "nan", "inf" and "-inf", which JSON can hold.

    metrics.csv uses the same texts; ``float(x)`` reads both numbers and these texts.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


def format_line(record: Mapping[str, object]) -> str:
    """Return ``record`` as one line of strict JSON in ASCII; no text in it can break the JSON or the line."""
    return json.dumps(plain(record), allow_nan=False)


def drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Truncate the file after the last line of ``step`` and return the remaining records.

    An incomplete last line is removed. Any other damage before the cut raises ``BadResource``. A missing file counts as
    empty.
    """
    if not path.exists():
        return []
    with storing(path):
        data = path.read_bytes()
    records: list[dict[str, Any]] = []
    end = 0
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            later = record["step"] > step
        except (ValueError, KeyError, TypeError) as error:
            if end + len(line) + 1 == len(data):
                break
            hint = "Start this run again with --if-exists overwrite."
            raise BadResource(f"{path}, line {number} is damaged: {error}", hint) from error
        if later:
            break
        records.append(record)
        end += len(line) + 1
    if end != len(data):
        write_atomic(path, data[:end], durable=True)
    return records


@dataclass(frozen=True)
class Sample:
    """One reply: its row in the batch, its texts, its proxy reward, and its judge reward if the judge scored it."""

    row: int
    prompt: str
    reply: str
    reward: float
    judge: float | None = None
    split: str = "train"
    """``train``, or ``heldout`` at an evaluation."""
    messages: list[dict[str, Any]] | None = None
    """The conversation whose transcript is ``prompt``; a line has this key only if there is a conversation."""


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
            self._lines.write(format_line(record))

    def sync(self) -> None:
        """Wait until all samples are on the disk."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def drop_samples_after(path: Path, step: int) -> dict[int, list[Sample]]:
    """Truncate samples.jsonl after ``step`` and return the remaining samples by step."""
    kept: dict[int, list[Sample]] = {}
    for record in drop_after(path, step):
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


What = Literal["begins", "ends", "open"]


def format_event(step: int, event: Event, what: What | None = None) -> str:
    """Return the line of an event that was detected at ``step``.

    ``what`` defaults to "begins" if the event has no end yet, else to "ends". "open" is for episodes that are still
    open at the end of the run.
    """
    found = what or ("begins" if event.end is None else "ends")
    return format_line({"step": step, "what": found, **asdict(event)})


class EventsWriter:
    """Writes events.jsonl: first the events of a replay of the kept rows (none for a new run), then new events."""

    def __init__(self, path: Path, replayed: Iterable[tuple[int, Sequence[Event]]] = ()) -> None:
        lines = [format_event(step, event) for step, events in replayed for event in events]
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
        self._lines = Appender(path)

    def write(self, step: int, events: Sequence[Event], what: What | None = None) -> None:
        """Append the events of one step."""
        for event in events:
            self._lines.write(format_event(step, event, what))

    def sync(self) -> None:
        """Wait until all events are on the disk."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
