"""Write and read metrics.csv: one line per step, columns in the schema's order, numbers that read back bit for bit."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import SupportsFloat, SupportsInt, TypeGuard

from safebench.errors import BadResource, SafebenchError
from safebench.metrics import KEYS, METRICS, Metric
from safebench.recording.files import Appender, storing, write_atomic

Value = float | int | str | None
Row = Mapping[str, Value]

HEADER = ",".join(KEYS)


def is_text(metric: Metric) -> bool:
    """Return whether the column holds a name rather than a number."""
    return metric.unit == "name"


def _is_whole(value: object) -> TypeGuard[SupportsInt]:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_number(value: object) -> TypeGuard[SupportsFloat]:
    return not isinstance(value, bool) and isinstance(value, Real)


def cell(metric: Metric, value: object) -> str:
    """Return the text of one value: shortest digits that read back to the same float, nan, inf, or nothing for None.

    Any Python or numpy number is accepted. A truth value, a tensor or an empty name raises ``SafebenchError``.
    """
    if value is None:
        return ""
    if is_text(metric):
        if isinstance(value, str) and value and value.isprintable():
            return value
    elif _is_whole(value):
        return str(int(value))
    elif _is_number(value):
        return repr(float(value))
    wanted = "a name" if is_text(metric) else "a number"
    raise SafebenchError(f"{metric.key} takes {wanted} or None, not {value!r} ({type(value).__name__})")


def value_of(metric: Metric, text: str) -> Value:
    """Return the value of a cell, the inverse of ``cell``; numbers are returned as floats."""
    if text == "":
        return None
    return text if is_text(metric) else float(text)


def format_row(row: Row) -> str:
    """Return the line of one row, without line break; raise ``SafebenchError`` if its keys are not the schema's."""
    unknown = sorted(set(row) - set(KEYS))
    missing = [key for key in KEYS if key not in row]
    if unknown or missing:
        faults = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        raise SafebenchError(
            f"a row does not fit the metric schema ({'; '.join(faults)})",
            "Every column is a Metric in safebench/metrics.py; what a step did not measure is None.",
        )
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([cell(metric, row[metric.key]) for metric in METRICS])
    return text.getvalue()


def parse_row(line: str) -> dict[str, Value]:
    """Return the row of one line; raise ``ValueError`` if the line does not fit the schema."""
    cells = next(csv.reader([line], strict=True), [])
    if len(cells) != len(METRICS):
        raise ValueError(f"{len(cells)} cells where the schema has {len(METRICS)}")
    return {metric.key: value_of(metric, text) for metric, text in zip(METRICS, cells, strict=True)}


def step_of(row: Row) -> int:
    """Return the row's step, the only value that must not be empty."""
    step = row.get("step")
    if step is None or isinstance(step, str) or not float(step).is_integer():
        raise SafebenchError(f"the step of a row must be a whole number, not {step!r}")
    return int(step)


class MetricsWriter:
    """Appends rows to metrics.csv; an empty file gets the header first. Steps start at 0 or 1 and rise by one."""

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        self._last = last_step
        self._lines = Appender(path)
        if self._lines.empty:
            self._lines.write(HEADER)

    def write(self, row: Row) -> dict[str, Value]:
        """Append one row and return it as it will be read back."""
        line = format_row(row)
        self.check_order(row)
        self._lines.write(line)
        self._last = step_of(row)
        return parse_row(line)

    def check_order(self, row: Row) -> None:
        """Raise ``SafebenchError`` if the row's step is not the next one."""
        step = step_of(row)
        due = _due(self._last)
        if step not in due:
            raise SafebenchError(f"the row of step {step} came where that of step {due[0]} was due")

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _due(last: int | None) -> tuple[int, ...]:
    return (0, 1) if last is None else (last + 1,)


def drop_after(path: Path, step: int) -> list[dict[str, Value]]:
    """Truncate metrics.csv after the row of ``step`` and return the remaining rows; -1 drops all rows.

    Later lines, including incomplete ones, are dropped unread. Raises ``BadResource`` if the file has another schema or
    lacks a row up to ``step``.
    """
    data = b""
    if path.exists():
        with storing(path):
            data = path.read_bytes()
    lines = data.split(b"\n")[:-1]  # text after the last line break is an incomplete line
    if step < 0:
        lines = lines[:1] if lines[:1] == [HEADER.encode()] else []
        rows: list[dict[str, Value]] = []
    else:
        rows = _rows_up_to(path, lines, step)
        lines = lines[: len(rows) + 1]
    kept = b"".join(line + b"\n" for line in lines)
    if kept != data:
        write_atomic(path, kept, durable=True)
    return rows


def _rows_up_to(path: Path, lines: list[bytes], step: int) -> list[dict[str, Value]]:
    hint = "Start this run again with --if-exists overwrite."
    if not lines or lines[0] != HEADER.encode():
        raise BadResource(f"{path} has not the columns of this version's metric schema", hint)
    rows: list[dict[str, Value]] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = parse_row(line.decode())
            found = step_of(row)
        except (ValueError, SafebenchError, csv.Error) as error:
            raise BadResource(f"{path}, line {number} is damaged: {error}", hint) from error
        if found not in _due(step_of(rows[-1]) if rows else None):
            raise BadResource(f"{path}, line {number} is of step {found}, out of order", hint)
        if found > step:
            break
        rows.append(row)
        if found == step:
            return rows
    last = step_of(rows[-1]) if rows else None
    raise BadResource(f"{path} ends at step {last}, but the run is to go on after step {step}", hint)
