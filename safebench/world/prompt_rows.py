"""Numbered rows of prompts: from JSON, JSON Lines, Parquet, CSV, TSV and text files, and from data sets."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safebench import catalog
from safebench.catalog import Entry
from safebench.errors import BadResource, MissingResource
from safebench.world.loading import loading

Row = tuple[int, Any]
"""The number of a row, from 1, and what it holds: a mapping by columns, a text, a list of messages, or None.

In text files and JSON Lines the number is that of the line, in CSV that of the record after the header.
"""

_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_SAVE_AS_UTF8 = "Save the file as UTF-8."


Choose = Callable[[Sequence[str]], Sequence[str]]
"""Given a table's columns, returns those to read."""


def read_rows(source: Entry, columns: Sequence[str], beside: Sequence[str]) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of a file, of a local directory or of a hub data set, and what of it was not read.

    Of a data set the split ``train`` is read.

    Of tables that keep columns apart only ``columns`` and those ``beside`` them are read, all where none of
    ``columns`` is there. Raises ``MissingResource`` for what is not to be had, and ``BadResource`` with the place for
    what cannot be read.
    """

    def choose(names: Sequence[str]) -> Sequence[str]:
        known = [name for name in names if name in (*columns, *beside)]
        return known if any(name in columns for name in known) else names

    if source.kind == "hub":
        return _dataset(source, choose)
    path = Path(source.location)
    return _dataset(source, choose) if path.is_dir() else _file(path, choose)


def _file(path: Path, choose: Choose) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of a file, gzipped or not; lines end in a line feed, and nothing else divides them."""
    ending = catalog.prompt_file(path)
    data = _bytes(path)
    if ending == ".parquet":
        return _parquet(path, data, choose), ()
    text = _text(path, data)
    if ending in (".csv", ".tsv"):
        return list(_csv(path, text, "," if ending == ".csv" else "\t")), ()
    if ending == ".txt":
        return list(_lines(text)), ()
    return _json(path, text, lines=ending != ".json")


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise MissingResource(f"{path} cannot be read: {fault.strerror}", "Name a file that can be.") from fault
    if path.suffix.lower() != ".gz":
        if data.startswith(b"\x1f\x8b"):
            raise BadResource(f"{path} is gzipped, and its name does not say so", f"Name it {path.name}.gz.")
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as fault:
        raise BadResource(f"{path}: not gzip ({fault})", "Make it again with gzip, or name it without .gz.") from fault


def _text(path: Path, data: bytes) -> str:
    """Decode UTF-8, with or without byte-order mark; offsets count from 0."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise BadResource(f"{path}, line 1, byte offset 0: the file is {encoding}, not UTF-8", _SAVE_AS_UTF8)
    if (place := data.find(b"\x00")) >= 0:
        raise BadResource(f"{path}, {_place(data, place)}: a NUL byte, which no text has", _SAVE_AS_UTF8)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as fault:
        raise BadResource(
            f"{path}, {_place(data, fault.start)}: byte 0x{data[fault.start]:02x} is not UTF-8 ({fault.reason})",
            _SAVE_AS_UTF8,
        ) from fault


def _place(data: bytes, offset: int) -> str:
    line = data.count(b"\n", 0, offset) + 1
    return f"line {line}, byte offset {offset}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines; what follows the last line feed is one only where there is something."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r")


def _csv(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    """Yield the records after the header; every field is a text."""
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise BadResource(
                f"{path}: a column's name stands twice in the header {', '.join(names)}", "Rename one of the two."
            )
        for number, fields in enumerate(reader, 1):
            if fields and len(fields) != len(names):
                raise BadResource(
                    f"{path}, row {number} (up to line {reader.line_num}) has {len(fields)} fields, and the header "
                    f"{len(names)}: {', '.join(names)}",
                    "Put texts with commas, quotes or line ends into double quotes.",
                )
            if fields:
                yield number, dict(zip(names, fields, strict=True))
    except csv.Error as fault:
        raise BadResource(
            f"{path}, line {reader.line_num}: not CSV ({fault})", "Double the quotes within a quoted text."
        ) from fault
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path, data: bytes, choose: Choose) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        # Lists of structs are lists of mappings here; in pandas they are arrays.
        rows = file.read(columns=list(choose(file.schema_arrow.names))).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as fault:
        reason = " ".join(str(fault).split())
        raise BadResource(f"{path}: not Parquet that can be read ({reason})", "Write the file anew.") from fault
    return list(enumerate(rows, 1))


def _dataset(source: Entry, choose: Choose) -> tuple[list[Row], tuple[str, ...]]:
    """Read the split ``train`` with `datasets`: from the hub, a directory of files, or what ``save_to_disk`` left."""
    location, what, others = source.location, f"prompts {source.name}", list[str]()
    with _readable(what, location), _quiet_datasets():
        found = _loaded(what, location)
    if isinstance(found, dict):
        if "train" not in found:
            raise BadResource(f"{what} has no split train; there are {', '.join(map(str, found))}", _one_file(location))
        others = [str(split) for split in found if split != "train"]
        found = found["train"]
    told = [f"of {what} the split train is read, and not {', '.join(others)}"] if others else []
    if kinds := _other_kinds(Path(location), found):
        told.append(f"of {what} no file is read that ends in {', '.join(kinds)}: `datasets` reads one kind alone")
    return list(enumerate(found.select_columns(list(choose(found.column_names))).to_list(), 1)), tuple(told)


def _other_kinds(folder: Path, found: Any) -> list[str]:
    """Return the endings of files of prompts in a folder of which `datasets` read none."""
    read = _READERS.get(str(found.info.builder_name), frozenset())
    about = {"dataset_infos.json", "state.json", "dataset_dict.json", "dataset_info.json"}
    there = {file.suffix.lower() for file in folder.rglob("*") if file.is_file() and file.name not in about}
    return sorted(there & frozenset[str]().union(*_READERS.values()) - read) if read else []


_READERS = {
    "json": frozenset({".json", ".jsonl", ".ndjson"}),
    "csv": frozenset({".csv", ".tsv"}),
    "parquet": frozenset({".parquet"}),
}
"""Endings of the files of prompts that each builder of `datasets` reads; a text beside them is mostly a licence."""


def _loaded(what: str, location: str) -> Any:
    import datasets

    if any((Path(location) / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(location)
    try:
        return datasets.load_dataset(location)
    except ValueError as fault:
        _, several, known = str(fault).partition("Please pick one among the available configs: ")
        if not several:
            raise
        names = known.partition("\n")[0]
        raise BadResource(f"{what} has several configurations, {names}", _one_file(location)) from fault


@contextlib.contextmanager
def _readable(what: str, location: str) -> Iterator[None]:
    """Name the data set that `datasets` could not read, and why."""
    from datasets.exceptions import DatasetsError

    here = Path(location).is_dir()
    try:
        with contextlib.nullcontext() if here else loading(what, location):
            yield
    except (DatasetsError, OSError, ValueError, RuntimeError) as fault:
        # A data set made by a script of its own, which is not run, is a RuntimeError.
        reason = " ".join(f"{fault} {fault.__cause__ or ''}".split())[:300]
        files = sorted(file for file in Path(location).rglob("*") if here and catalog.prompt_file(file) is not None)
        hint = f"Name one file of it, such as {files[0]}." if files else _one_file(location)
        raise BadResource(f"{what}: `datasets` cannot read {location}: {reason}", hint) from fault


def _one_file(location: str) -> str:
    return f'Save what to read as a file: load_dataset("{location}", …)["SPLIT"].to_json("prompts.jsonl").'


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _json(path: Path, text: str, *, lines: bool) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of an array, of an object that has one list of them, or of JSON Lines, whichever it is."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        return [], ()
    by_lines = lines and text[start] != "["
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
        if text[end:].strip(" \t\r\n") and "\n" in text[start:end]:
            json.loads(text)  # More than one value, and not one a line: this says where the second begins.
    except (json.JSONDecodeError, RecursionError) as fault:
        if by_lines:
            return _json_lines(path, text), ()
        raise _not_json(path, fault) from fault
    if text[end:].strip(" \t\r\n"):
        return _json_lines(path, text), ()
    if isinstance(value, list):
        return list(enumerate(value, 1)), ()
    if isinstance(value, dict) and not by_lines:
        key, rows = _rows_within(path, value)
        told = () if key in _USUAL else (f"of {path} the list {key!r} is read",)
        return list(enumerate(rows, 1)), told
    return [(1, value)], ()


_USUAL = ("data", "rows", "prompts", "prompt", "train", "examples")
"""Names of the one list of a JSON object that go without saying."""


def _rows_within(path: Path, value: dict[str, Any]) -> tuple[str, list[Any]]:
    """Return the one list of rows that an object holds: of objects, or of texts where there is none of objects."""
    lists = {key: item for key, item in value.items() if isinstance(item, list) and item}
    objects = {key: item for key, item in lists.items() if isinstance(item[0], dict)}
    lists = objects or lists
    if len(lists) != 1:
        raise BadResource(
            f"{path} is an object with {len(lists)} lists of rows ({', '.join(value) or 'empty'}), where one is needed",
            'Give an array of rows, an object with one list such as {"data": [...]}, or JSON Lines.',
        )
    return next(iter(lists.items()))


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in _lines(text):
        if not line.strip(" \t\r"):
            continue
        try:
            rows.append((number, json.loads(line)))
        except (json.JSONDecodeError, RecursionError) as fault:
            raise _not_json(path, fault, number) from fault
    return rows


def _not_json(path: Path, fault: json.JSONDecodeError | RecursionError, line: int | None = None) -> BadResource:
    if isinstance(fault, RecursionError):
        return BadResource(
            f"{path}{'' if line is None else f', line {line}'}: JSON nested too deep", "Make the file anew."
        )
    return BadResource(
        f"{path}, line {line or fault.lineno}, column {fault.colno}: not JSON ({fault.msg})",
        "Mend the place, or make the file anew with a JSON library.",
    )
