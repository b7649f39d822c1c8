"""The run folder at its start: a new one is described, an old one is checked to be the same run."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safebench import config, yaml_text
from safebench.errors import BadResource, UsageError
from safebench.recording import manifest as manifest_file
from safebench.recording.files import now, storing, write_atomic
from safebench.recording.jsonl import plain
from safebench.settings import Settings

CONFIG = "config.yaml"
_ELSEWHERE = frozenset({"recording", "compute", "description", "trust_remote_code", "tuned"})
"""Sections that may change between the parts of a run: they do not touch what its rows say."""

_FIXED = ("sigma0", "judge_sigma0", "vocabulary", "hashes")
_HINT = "Start this run again with --if-exists overwrite, or with the settings it was started with."


def begin(folder: Path, settings: Settings, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write config.yaml and manifest.json of a new run; return the manifest with the run's id.

    Raises ``UsageError`` where the folder holds a run already.
    """
    if (folder / "metrics.csv").exists():
        hint = "Resume it, or overwrite it, with --if-exists."
        raise UsageError(f"{folder} holds a run already", hint)
    described = {"run_id": uuid.uuid4().hex[:12], **manifest}
    _write_config(folder, settings)
    manifest_file.write(folder, described)
    return described


def go_on(folder: Path, settings: Settings, manifest: Mapping[str, Any], after_step: int) -> dict[str, Any]:
    """Check that settings and manifest are those of the run in ``folder``, note the new start, return its manifest.

    Raises ``BadResource`` with every difference where they are not: rows of two runs do not belong in one file.
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
    """Delete what a recorder left in ``folder``, and nothing else: an overwritten run starts from nothing."""
    with storing(folder):
        for name in ("checkpoints", "adapter", "model", "trackers"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        # metrics.csv last: while it is there, ``begin`` refuses the half-cleared folder
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
