"""One JSON object per line, each with the step it belongs to; shared by samples.jsonl and events.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safebench.errors import BadResource
from safebench.recording.files import storing, write_atomic


def plain(value: Any) -> Any:
    """Return ``value`` with the floats JSON has no number for as their names ("nan", "inf", "-inf"), at any depth.

    metrics.csv writes them so too; ``float(x)`` reads either form back.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


def format_line(record: Mapping[str, object]) -> str:
    """Return ``record`` as one line of strict JSON in ASCII: no text can break it or the line."""
    return json.dumps(plain(record), allow_nan=False)


def drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Cut the file behind the last line of ``step`` and return the records that stay.

    A half-written last line goes; any other damage before the cut is a ``BadResource``. A missing file is an empty one.
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
