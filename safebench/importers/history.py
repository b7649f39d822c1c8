"""Reads other trainers' metric histories (JSONL, trainer_state.json, CSV, W&B offline) as one row per step."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from safebench.errors import BadResource, MissingResource, UsageError

_MAGIC = b":W&B"
_BLOCK = 32768
_HEAD = 7
"""Bytes of the file's own header, and of each fragment's header: checksum, length, kind."""

_WHOLE, _LAST = 1, 4

# Field numbers as in W&B's wandb_internal.proto; a test compares them with those of the installed release.
RECORD = {"history": 2, "config": 5, "run": 17}
HISTORY = {"item": 1, "step": 2}
ITEM = {"key": 1, "nested_key": 2, "value_json": 16}
TYPED = {"none": 3, "boolean": 4, "integer": 5, "number": 6, "text": 7, "json": 8}
"""Newer releases may write an item's value into one of these instead of ``value_json``."""
STEP = {"num": 1}
RUN = {"config": 4}
CONFIG = {"update": 1}


class Content(NamedTuple):
    """Content of a file: one mapping per logged step, the run's settings, and whether the end was cut off."""

    rows: list[dict[str, Any]]
    config: dict[str, Any]
    truncated: bool


def read_wandb_file(path: Path) -> Content:
    """Return the metric history and the settings in ``path``; ``_step`` is W&B's own count of steps.

    Raises ``BadResource`` if the file is not one of W&B's or is damaged before its end.
    """
    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    records, truncated = frames(path)
    for record in records:
        try:
            _take(record, rows, config)
        except (ValueError, struct.error) as error:
            raise BadResource(f"{path}: a record is damaged: {error}", _HINT) from error
    return Content(rows, config, truncated)


_HINT = "Give the run-*.wandb file of an offline run, or its folder."


def frames(path: Path) -> tuple[list[bytes], bool]:
    """Return the records of ``path`` as bytes, and whether the last record was cut off and left out.

    Raises ``BadResource`` if the file is not one of W&B's, or if a checksum is wrong.
    """
    data = path.read_bytes()
    if data[:4] != _MAGIC:
        raise BadResource(f"{path} is no W&B run file: it does not begin with {_MAGIC.decode()}", _HINT)
    records: list[bytes] = []
    position, parts = _HEAD, b""
    while position + _HEAD <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEAD:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        fragment = data[position + _HEAD : position + _HEAD + length]
        if kind == 0 or len(fragment) < length:  # space that was never written, or written only in part
            return records, True
        if zlib.crc32(bytes([kind]) + fragment) != checksum:
            raise BadResource(f"{path} is damaged at byte {position}: wrong checksum", _HINT)
        position += _HEAD + length
        parts += fragment
        if kind in (_WHOLE, _LAST):
            records.append(parts)
            parts = b""
    return records, bool(parts) or position < len(data)


def _take(record: bytes, rows: list[dict[str, Any]], config: dict[str, Any]) -> None:
    for number, value in _fields(record):
        if number == RECORD["history"]:
            row = _items(value, HISTORY["item"])
            steps = [field for found, field in _fields(value) if found == HISTORY["step"]]
            if steps and "_step" not in row:  # a field with the value 0 is not written
                row["_step"] = next((int(num) for found, num in _fields(steps[0]) if found == STEP["num"]), 0)
            rows.append(dict(sorted(row.items())))  # W&B does not keep the order of keys
        elif number == RECORD["config"]:
            config |= _items(value, CONFIG["update"])
        elif number == RECORD["run"]:
            for found, field in _fields(value):
                if found == RUN["config"]:
                    config |= _items(field, CONFIG["update"])


def _items(message: bytes, wanted: int) -> dict[str, Any]:
    """Return the key-value items of a message; nested keys are joined by slashes as in W&B."""
    found: dict[str, Any] = {}
    for number, item in _fields(message):
        if number != wanted:
            continue
        key, nested, value = "", [], None
        for part, content in _fields(item):
            if part == ITEM["key"]:
                key = content.decode()
            elif part == ITEM["nested_key"]:
                nested.append(content.decode())
            elif part == ITEM["value_json"]:
                value = json.loads(content)
            else:
                value = _typed(part, content, value)
        found["/".join(nested) or key] = value
    return found


def _typed(field: int, content: Any, before: Any) -> Any:
    if field == TYPED["boolean"]:
        return bool(content)
    if field == TYPED["integer"]:
        return (content >> 1) ^ -(content & 1)  # the lowest bit holds the sign
    if field == TYPED["number"]:
        return struct.unpack("<d", content)[0]
    if field == TYPED["text"]:
        return content.decode()
    if field == TYPED["json"]:
        return json.loads(content)
    return None if field == TYPED["none"] else before


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field: bytes, or an integer for a varint."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, position = _varint(message, position)
        if size is None or position + size > len(message):
            raise ValueError(f"field {tag >> 3} of kind {kind} at byte {position}")
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError(f"a number without end at byte {position}")
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


Raw = dict[str, Any]
"""One logged mapping, with the values as in the file."""

FORMS = "a JSONL file (one object per line), a trainer_state.json, a CSV with a header, or a W&B offline-run folder"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class History:
    """Content of a file; ``config`` are the trainer's settings if the file has them (W&B, trainer_state.json)."""

    path: Path
    rows: Sequence[Raw]
    config: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def read(path: Path) -> History:
    """Return the history in ``path``, a file or a folder with one.

    Raises ``MissingResource`` if there is nothing, ``UsageError`` if it is no history or holds several, and
    ``BadResource`` if it is damaged or empty.
    """
    if not path.exists():
        raise MissingResource(f"there is no {path}", f"Give {FORMS}.")
    file = _file_in(path) if path.is_dir() else path
    found = _read_file(file)
    if not found.rows:
        raise BadResource(f"{file} holds no metrics", "Was the run stopped before its first log? Its log is needed.")
    return found


def number(value: object) -> float | None:
    """Return a logged value as a float, or None if it is no number: a text, a truth value, a table, nothing.

    "NaN", "Infinity" and "-Infinity" are numbers, because JSON cannot write them in another way.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _file_in(folder: Path) -> Path:
    runs = sorted({*folder.glob("*.wandb"), *folder.glob("*run-*/*.wandb"), *folder.glob("wandb/*run-*/*.wandb")})
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(str(run.parent.relative_to(folder)) for run in runs)
        raise UsageError(f"{folder} holds {len(runs)} W&B runs: {names}", "Import them one by one, each by its folder.")
    states = [path for path in folder.glob(f"checkpoint-*/{_STATE}") if path.parent.name[11:].isdigit()]
    if (folder / _STATE).is_file():
        return folder / _STATE
    if states:  # each checkpoint's file holds the history up to that checkpoint
        return max(states, key=lambda path: int(path.parent.name[11:]))
    raise UsageError(f"{folder} holds no W&B run and no {_STATE}", f"Give {FORMS}.")


def _read_file(path: Path) -> History:
    if path.suffix == ".wandb" or path.read_bytes()[:4] == b":W&B":
        content = read_wandb_file(path)
        cut = ("the file ends in the middle of a record, which is left out",) if content.truncated else ()
        return History(path, content.rows, content.config, cut)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text: {error}", f"Give {FORMS}.") from error
    if text.lstrip()[:1] in ("{", "["):
        return _read_json(path, text)
    if path.suffix in (".csv", ".tsv") or "," in text.partition("\n")[0]:
        return _read_csv(path, text)
    if not text.strip():
        return History(path, ())
    raise UsageError(f"{path} is none of the forms that can be read", f"Give {FORMS}.")


def _read_json(path: Path, text: str) -> History:
    try:
        whole = json.loads(text)
    except ValueError:
        return _read_lines(path, text)
    if isinstance(whole, dict) and isinstance(whole.get("log_history"), list):
        config = {key: value for key, value in whole.items() if key != "log_history"}
        return History(path, _mappings(path, whole["log_history"]), config)
    return History(path, _mappings(path, whole if isinstance(whole, list) else [whole]))


def _read_lines(path: Path, text: str) -> History:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows: list[Any] = []
    notices: tuple[str, ...] = ()
    for position, (line_number, line) in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if position == len(lines) and position > 1 and not text.endswith("\n"):
                notices = (f"line {line_number}, the last, is cut off and left out",)
                break
            raise BadResource(
                f"{path}, line {line_number} is no JSON object: {error}",
                "One object per line is needed; mend that line.",
            ) from error
    return History(path, _mappings(path, rows), notices=notices)


def _mappings(path: Path, rows: Sequence[Any]) -> list[Raw]:
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}, entry {place} is a {type(row).__name__}, not an object", f"Give {FORMS}.")
    return [_unwrapped(row) for row in rows]


def _unwrapped(row: Raw) -> Raw:
    """Return the metrics of ``{"step": n, "data": {...}}``, the form of verl's file logger, as one flat row."""
    data = row.get("data")
    if isinstance(data, dict) and set(row) <= {"step", "data"}:
        return {**({"step": row["step"]} if "step" in row else {}), **data}
    return row


def _read_csv(path: Path, text: str) -> History:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    try:
        header, *lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    except csv.Error as error:
        raise BadResource(f"{path} is damaged: {error}", "A last line that was cut off can be deleted.") from error
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise BadResource(f"{path} has several columns {', '.join(doubled)}", "Each column needs a name of its own.")
    lines = [line for line in lines if line]
    notices: tuple[str, ...] = ()
    if lines and len(lines[-1]) < len(header) and not text.endswith("\n"):
        lines.pop()
        notices = ("the last line is cut off and left out",)
    for place, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise BadResource(
                f"{path}, line {place} has {len(line)} cells where the header has {len(header)}", "Mend that line."
            )
    rows = [{name: cell for name, cell in zip(header, line, strict=True) if cell != ""} for line in lines]
    return History(path, rows, notices=notices)


def whole(value: object) -> int | None:
    """Return a logged value as an integer, or None if it is not a whole number."""
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) and found.is_integer() else None


LARGEST = 1_000_000
"""Number of steps above which a column of steps more likely counts replies or tokens."""


@dataclass(frozen=True)
class Steps:
    """A history by step: merged ``rows``, and the ``entries`` as they were logged, each with its step.

    ``counted`` is the key that the steps were read from, or None if the rows were numbered.
    """

    rows: dict[int, Raw]
    entries: tuple[tuple[int, Raw], ...]
    counted: str | None
    notices: tuple[str, ...] = ()
    every: int = 1
    """Median distance between two logged training steps."""

    @property
    def last(self) -> int:
        """The last step."""
        return max(self.rows)

    @property
    def keys(self) -> list[str]:
        """Every key that was logged, in the order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows.values() for key in row))


def by_step(history: History, counters: Sequence[str], matters: Callable[[str], bool] = lambda key: True) -> Steps:
    """Return ``history`` by step, read from the first of ``counters`` that it has; without one, rows count from 1.

    Rows of one step are merged. A row without a step belongs to the step before it. Raises ``BadResource`` if steps
    fall, or if a step has two values of a key that ``matters``: the file does not say which of them the run kept. For
    other keys, such as times that are logged at each call, the last value of a step is used, and a notice says so.
    """
    counter = next((key for key in counters if any(key in row for row in history.rows)), None)
    merged: dict[int, Raw] = {}
    entries: list[tuple[int, Raw]] = []
    repeated: dict[str, None] = {}
    last: int | None = None
    strays = merges = 0
    for place, row in enumerate(history.rows, start=1):
        step = _step(history, place, row, counter) if counter else place
        if step is None:
            strays += 1
            step = last if last is not None else 0
        elif last is not None and step < last:
            raise BadResource(
                f"{history.path}: step {step} comes after step {last} (entry {place})",
                "A resumed run repeats steps: cut the file to the part that counts, or join the parts without overlap.",
            )
        merges += step in merged
        for key in _merge(merged.setdefault(step, {}), row):
            if matters(key):
                raise _contradiction(history, step, key, entries, row)
            repeated[key] = None
        entries.append((step, row))
        last = step
    notices = [*history.notices]
    if counter is None:
        notices.append("no column of steps: the rows are numbered from 1, in their order")
    if strays:
        notices.append(f"{strays} rows without a step were put with the step before them")
    if merges - strays > 0:
        notices.append(f"{merges - strays} rows were merged into the row of the same step")
    if repeated:
        notices.append(f"logged more than once in a step, where the last value stands: {', '.join(repeated)}")
    return Steps(merged, tuple(entries), counter, tuple(notices), _every(merged))


def gaps(steps: Steps) -> list[str]:
    """Return a sentence for each stretch of steps that was not logged: at most five, then the number of the others."""
    logged = [0, *sorted(step for step in steps.rows if step > 0)]
    said = [
        f"steps {before + 1}–{after - 1} were not logged"
        for before, after in pairwise(logged)
        if after - before > steps.every
    ]
    if len(said) > 5:
        said[5:] = [f"{len(said) - 5} more stretches were not logged"]
    if steps.every > 1:
        said.insert(0, f"logged every {steps.every} steps: what is shorter than that cannot be seen")
    return said


def _step(history: History, place: int, row: Raw, counter: str) -> int | None:
    if counter not in row:
        return None
    step = whole(row[counter])
    if step is None or step < 0:
        raise BadResource(
            f"{history.path}, entry {place}: {counter} is {row[counter]!r}, no step",
            "Steps are whole numbers from 0 on.",
        )
    if step > LARGEST:
        raise UsageError(
            f"{history.path}, entry {place}: {counter} is {step}, more than {LARGEST} steps",
            "Is this a count of replies or tokens? Rename the column; rows without a column of steps are numbered.",
        )
    return step


def _merge(into: Raw, row: Raw) -> list[str]:
    """Merge a row into the row of its step, and return the keys that had another value there."""
    # Keys with an underscore are W&B's own (time of the call), and differ between two calls of one step.
    other = [key for key, value in row.items() if key in into and key[:1] != "_" and not _same(into[key], value)]
    into.update(row)
    return other


def _contradiction(history: History, step: int, key: str, entries: Sequence[tuple[int, Raw]], row: Raw) -> BadResource:
    first = next(entry[key] for found, entry in entries if found == step and key in entry)
    return BadResource(
        f"{history.path}: step {step} has two values of {key}: {first!r} and {row[key]!r}",
        "Two runs, or a resumed one, in one file? Cut it to the part that counts.",
    )


def _same(first: object, second: object) -> bool:
    if first == second:
        return True
    one, two = number(first), number(second)
    return one is not None and two is not None and (one == two or (one != one and two != two))


def _every(rows: dict[int, Raw]) -> int:
    logged = sorted(step for step in rows if step > 0)
    distances = [after - before for before, after in pairwise(logged)]
    return median_low(distances) if distances else 1
