"""events.jsonl: crash episodes as they begin and end, and those still open when the run does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from safebench.crashes.detect import Event
from safebench.recording import jsonl
from safebench.recording.files import Appender, write_atomic

What = Literal["begins", "ends", "open"]


def format_event(step: int, event: Event, what: What | None = None) -> str:
    """Return the line of an event that came up at ``step``.

    ``what`` is "begins" or "ends" as the event's own end says; "open" is for those the run's end finds open.
    """
    found = what or ("begins" if event.end is None else "ends")
    return jsonl.format_line({"step": step, "what": found, **asdict(event)})


class EventsWriter:
    """Writes events.jsonl: first what a replay of the kept rows found (nothing on a new run), then what comes."""

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
