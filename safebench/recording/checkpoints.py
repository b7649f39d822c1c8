"""Checkpoints: all state of a run in one file per step, whole or not there, loaded without running code from it."""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from safebench.errors import BadResource, SafebenchError
from safebench.recording.files import make_folder, storing, sync_folder

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.pt")
_PART = ".part"
_SCALARS = (int, float, str, bool, type(None))


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of ``step`` lies in ``folder``."""
    return folder / f"step-{step}.pt"


def steps(folder: Path) -> list[int]:
    """Return the steps ``folder`` has a checkpoint of, in order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write ``state`` after ``step`` and return its path; the file appears under its name once it is on the disk.

    ``state`` is made of dicts, lists, tuples, tensors, numbers, text, truth values and None, nothing else: what is
    saved must load again without trusting the file. Raises ``MissingResource`` where the folder is full or closed.
    """
    import torch

    _check(state, "state")
    make_folder(folder)
    path = path_of(folder, step)
    part = path.with_name(path.name + _PART)
    with storing(path):
        try:
            with part.open("wb") as file:
                _dump({"step": step, "state": dict(state)}, file, torch.save)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with suppress(OSError):  # gone where all went well; where not, the first fault is the one to tell
                part.unlink(missing_ok=True)
        sync_folder(folder)
    return path


class _Watched:
    """A file that remembers the fault behind what torch then reports as a fault of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.fault: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _dump(content: dict[str, Any], file: IO[bytes], write: Any) -> None:
    watched = _Watched(file)
    try:
        write(content, watched)
    except RuntimeError as error:
        if watched.fault is not None:
            raise watched.fault from error
        raise


def load(path: Path) -> tuple[int, dict[str, Any]]:
    """Return step and state of one checkpoint, tensors on the CPU; ``BadResource`` where the file is damaged."""
    import torch

    fault = damage(path)
    if fault is not None:
        raise BadResource(f"{path} is damaged: {fault}", "Delete it: the run then goes on from the one before.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return int(content["step"]), content["state"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError) as error:
        raise BadResource(f"{path} is no checkpoint of a run: {error}", "Delete it, or point at another.") from error


def damage(path: Path) -> str | None:
    """Return what is wrong with the archive by its own checksums (which torch does not look at), None if nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return None if broken is None else f"checksum of {broken} is wrong"


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Return step and state of the newest whole checkpoint, None where there is none.

    A damaged one is passed over with a warning in the log.
    """
    for step in reversed(steps(folder)):
        try:
            return load(path_of(folder, step))
        except BadResource as error:
            _LOG.warning("%s; looking for the checkpoint before it", error)
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what a killed write left behind."""
    for step in steps(folder)[:-keep] if keep else steps(folder):
        path_of(folder, step).unlink()
    for part in folder.glob(f"step-*.pt{_PART}"):
        part.unlink()


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints later than ``step``: the run goes on from there and will write them anew."""
    for later in steps(folder):
        if later > step:
            path_of(folder, later).unlink()


def _check(value: Any, where: str) -> None:
    import torch

    # Exact types: a numpy number or a named tuple passes for its parent here, but not when it is loaded.
    if type(value) in _SCALARS or isinstance(value, torch.Tensor):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise SafebenchError(f"{where} has the key {key!r} ({type(key).__name__}); keys are text or integers")
            _check(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    else:
        raise SafebenchError(
            f"{where} is a {type(value).__name__}, which a checkpoint cannot hold",
            "State is dicts, lists, tuples, tensors, numbers, text, truth values and None (dataclasses.asdict helps).",
        )
