"""Manage a run folder: its status, the files of a new or resumed run, and the copy of it that serves as evidence."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from safebench import config
from safebench.config import yaml_text
from safebench.config.schema import Settings
from safebench.errors import BadResource, UsageError
from safebench.recording import jsonl
from safebench.recording import manifest as manifest_file
from safebench.recording.files import make_folder, now, storing, write_atomic
from safebench.recording.jsonl import plain

FILE = "status.json"


class Status(StrEnum):
    """State of a run: running, or ended in one of four ways."""

    RUNNING = "running"
    FINISHED = "finished"
    UNSTABLE = "unstable"
    """A non-finite number ended the run; this is a result."""
    INTERRUPTED = "interrupted"
    """Stopped by the user; resumable."""
    FAILED = "failed"
    """An error ended the run."""

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process for a single run that ended in this state; None while the run is running."""
        return {"running": None, "finished": 0, "unstable": 4, "interrupted": 130, "failed": 1}[self.value]


@dataclass(frozen=True)
class StatusRecord:
    """The content of status.json. Times are UTC, ISO 8601. ``summary`` comes from the caller and is set at the end.

    A killed run keeps the state ``running``; ``files.is_locked`` tells whether a process is still writing it.
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


def write_status(folder: Path, record: StatusRecord, *, durable: bool = False) -> None:
    """Replace status.json in ``folder``. Non-finite numbers in the summary are written as text."""
    data = json.dumps(plain(asdict(record)), indent=2, allow_nan=False)
    write_atomic(folder / FILE, f"{data}\n".encode(), durable=durable)


def read_status(folder: Path) -> StatusRecord | None:
    """Return the content of status.json in ``folder``, None if there is none; raise ``BadResource`` if damaged."""
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


CONFIG = "config.yaml"
_ELSEWHERE = frozenset({"recording", "compute", "description", "trust_remote_code", "tuned"})
"""Sections that may change when a run is resumed, because they do not affect its rows."""

_FIXED = ("sigma0", "judge_sigma0", "vocabulary", "hashes")
_HINT = "Start this run again with --if-exists overwrite, or with the settings it was started with."


def begin(folder: Path, settings: Settings, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write config.yaml and manifest.json of a new run; return the manifest with the run's id.

    Raises ``UsageError`` if the folder already holds a run.
    """
    if (folder / "metrics.csv").exists():
        hint = "Resume it, or overwrite it, with --if-exists."
        raise UsageError(f"{folder} holds a run already", hint)
    described = {"run_id": uuid.uuid4().hex[:12], **manifest}
    _write_config(folder, settings)
    manifest_file.write(folder, described)
    return described


def go_on(folder: Path, settings: Settings, manifest: Mapping[str, Any], after_step: int) -> dict[str, Any]:
    """Check that settings and manifest match the run in ``folder``, record the new start, return its manifest.

    Raises ``BadResource`` with every difference if they do not match, because one file must not hold rows of two runs.
    """
    kept = manifest_file.read(folder)
    faults = _changed_settings(_read_config(folder), settings) + _changed_constants(kept, manifest)
    if faults:
        raise BadResource(f"the run in {folder} is another one: {'; '.join(faults)}", _HINT)
    again = {key: value for key, value in manifest.items() if key not in (*_FIXED, "run_id", "started", "resumed")}
    kept["resumed"] = [*kept.get("resumed", []), {"after_step": after_step, "started": now(), **again}]
    _write_config(folder, settings)
    manifest_file.write(folder, kept)
    return kept


def clear(folder: Path) -> None:
    """Delete the files that a recorder wrote to ``folder``, and no others, so that an overwritten run starts empty."""
    with storing(folder):
        for name in ("checkpoints", "adapter", "model", "trackers"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        # metrics.csv is deleted last: while it exists, ``begin`` refuses the half-cleared folder
        for name in (CONFIG, "manifest.json", "samples.jsonl", "events.jsonl", "status.json", "metrics.csv"):
            (folder / name).unlink(missing_ok=True)


def _write_config(folder: Path, settings: Settings) -> None:
    write_atomic(folder / CONFIG, yaml_text.write(settings.model_dump(mode="json")).encode())


def _read_config(folder: Path) -> Settings:
    path = folder / CONFIG
    if not path.exists():
        raise BadResource(f"{path} is missing", _HINT)
    return config.load(path)


def _changed_settings(kept: Settings, given: Settings) -> list[str]:
    old, new = kept.model_dump(mode="json", exclude=set(_ELSEWHERE)), given.model_dump(mode="json")
    return _differences(old, {key: new[key] for key in old})


def _changed_constants(kept: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    return _differences({key: kept.get(key) for key in _FIXED}, {key: plain(given.get(key)) for key in _FIXED})


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            fault
            for key in keys
            for fault in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if old == new else [f"{where} was {old!r}, is {new!r}"]


WHOLE = ("config.yaml", "manifest.json", "metrics.csv", "events.jsonl", "status.json")
BEST_OF_N = "best-of-n"
REPLIES = 16
"""Number of held-out prompts whose replies are kept at every evaluation."""


def keep(folder: Path, root: Path, replies: int = REPLIES) -> Path:
    """Copy the run in ``folder`` to the same relative path below ``root`` and return the new folder.

    The best-of-n records of its model are copied too. Weights, checkpoints, trackers, training samples and other
    judges' scores are not copied. Raises ``UsageError`` if source and target are the same folder.
    """
    target = root.joinpath(*folder.resolve().parts[-3:])
    if target.resolve() == folder.resolve():
        raise UsageError(f"{folder} lies there already", "Name another folder with --out.")
    make_folder(target)
    for name in WHOLE:
        if (folder / name).exists():
            write_atomic(target / name, (folder / name).read_bytes())
    samples = folder / "samples.jsonl"
    if samples.exists():
        lines = samples.read_text(encoding="utf-8").split("\n")[:-1]
        records = map(json.loads, lines)
        chosen = [record for record in records if record["split"] == "heldout" and record["row"] < replies]
        write_atomic(target / "samples.jsonl", "".join(f"{jsonl.format_line(record)}\n" for record in chosen).encode())
    for record in sorted((folder.parents[1] / BEST_OF_N).glob("*/")):
        _copy_files(record, target.parents[1] / BEST_OF_N / record.name)
    return target


def _copy_files(folder: Path, target: Path) -> None:
    files = [path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")]
    if files:
        make_folder(target)
    for path in files:
        write_atomic(target / path.name, path.read_bytes())
