"""Save and load checkpoints: all state of a run, one atomic file per step, loaded without running code from it."""

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
    """Return the path of the checkpoint of ``step`` in ``folder``."""
    return folder / f"step-{step}.pt"


def steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint in ``folder``, in order; an empty list if there is no such folder."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Save ``state`` after ``step`` and return the path; the file gets its name only once it is on the disk.

    ``state`` must consist of dicts, lists, tuples, tensors, numbers, text, truth values and None only, because a
    checkpoint must load without trust in the file. Raises ``MissingResource`` if the folder is full or cannot be
    written.
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
            with suppress(OSError):  # absent on success; on failure, report the first error
                part.unlink(missing_ok=True)
        sync_folder(folder)
    return path


class _Watched:
    """A file that keeps the ``OSError`` of a write, which torch then reports as an error of its own."""

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
    """Return step and state of a checkpoint, tensors on the CPU; raise ``BadResource`` if the file is damaged."""
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
    """Check the archive by its own checksums, which torch ignores; return the fault, or None if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return None if broken is None else f"checksum of {broken} is wrong"


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Return step and state of the newest undamaged checkpoint, or None if there is none.

    A damaged checkpoint is skipped, and a warning is logged.
    """
    for step in reversed(steps(folder)):
        try:
            return load(path_of(folder, step))
        except BadResource as error:
            _LOG.warning("%s; looking for the checkpoint before it", error)
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and the partial files of killed writes."""
    for step in steps(folder)[:-keep] if keep else steps(folder):
        path_of(folder, step).unlink()
    for part in folder.glob(f"step-*.pt{_PART}"):
        part.unlink()


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints after ``step``; the resumed run writes them again."""
    for later in steps(folder):
        if later > step:
            path_of(folder, later).unlink()


def _check(value: Any, where: str) -> None:
    import torch

    # Check exact types: a numpy number or a named tuple is an instance of its parent type, but would not load.
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
