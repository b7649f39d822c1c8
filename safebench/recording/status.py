"""status.json: how far a run is and how it ended, replaced in one step at every change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from safebench.errors import BadResource
from safebench.recording.files import write_atomic
from safebench.recording.jsonl import plain

FILE = "status.json"


class Status(StrEnum):
    """What a run is: under way, or ended in one of four ways."""

    RUNNING = "running"
    FINISHED = "finished"
    UNSTABLE = "unstable"
    """A non-finite number ended it; a result."""
    INTERRUPTED = "interrupted"
    """Stopped by the user; resumable."""
    FAILED = "failed"
    """A fault ended it."""

    @property
    def exit_code(self) -> int | None:
        """The process's exit code for a single run that ended so; None while it runs."""
        return {"running": None, "finished": 0, "unstable": 4, "interrupted": 130, "failed": 1}[self.value]


@dataclass(frozen=True)
class StatusRecord:
    """The content of status.json. Times are UTC, ISO 8601. ``summary`` is the caller's, set at the end.

    A run that was killed still says ``running``: ``files.is_locked`` tells whether anybody works on it.
    """

    state: Status
    step: int
    steps: int
    started: str
    updated: str
    message: str = ""
    exit_code: int | None = None
    notices: tuple[str, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)


def write(folder: Path, record: StatusRecord, *, durable: bool = False) -> None:
    """Replace status.json in ``folder``. Non-finite numbers of the summary become their names."""
    data = json.dumps(plain(asdict(record)), indent=2, allow_nan=False)
    write_atomic(folder / FILE, f"{data}\n".encode(), durable=durable)


def read(folder: Path) -> StatusRecord | None:
    """Return what status.json in ``folder`` says, None where there is none; raise ``BadResource`` if it is no such."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        content["state"] = Status(content["state"])
        content["notices"] = tuple(content["notices"])
        known = {one.name for one in fields(StatusRecord)}  # a newer version may write more
        return StatusRecord(**{key: value for key, value in content.items() if key in known})
    except (ValueError, KeyError, TypeError) as error:
        hint = "Start this run again with --if-exists overwrite."
        raise BadResource(f"{path} is damaged: {error}", hint) from error
