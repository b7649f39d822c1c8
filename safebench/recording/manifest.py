"""manifest.json: what made a run: versions, commit, hardware, command, hashes, and constants measured at its start."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safebench.errors import BadResource, MissingResource
from safebench.recording import machine
from safebench.recording.files import now, write_atomic
from safebench.recording.jsonl import plain

FILE = "manifest.json"


def collect(
    *,
    device: str,
    hashes: Mapping[str, str],
    sigma0: float,
    vocabulary: int,
    measured: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the manifest of a run that starts now on the device named ``device`` ("cpu", "NVIDIA H100", …).

    ``hashes``: sha256 by what was hashed: model, reward, judge, prompts, … (see ``hash_folder``).
    ``sigma0``: standard deviation of the proxy reward under the initial policy, in reward units.
    ``vocabulary``: number of tokens the policy chooses from. ``measured``: whatever else was measured before
    the first step, ``judge_sigma0`` for one; it stands beside the two. ``command``: ``sys.argv`` by default.
    """
    return {
        **(measured or {}),
        "sigma0": sigma0,
        "vocabulary": vocabulary,
        "started": now(),
        "command": shlex.join(sys.argv if command is None else command),
        "hashes": dict(hashes),
        "versions": machine.versions(),
        "git": machine.checkout(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": machine.hardware(device),
    }


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace manifest.json in ``folder``."""
    data = json.dumps(plain(manifest), indent=2, allow_nan=False)
    write_atomic(folder / FILE, f"{data}\n".encode(), durable=True)


def read(folder: Path) -> dict[str, Any]:
    """Return manifest.json of ``folder``; ``BadResource`` where there is none or it is damaged.

    A resumed run takes ``sigma0`` and what else was measured from here rather than measure it anew.
    """
    path = folder / FILE
    hint = "Start this run again with --if-exists overwrite."
    if not path.exists():
        raise BadResource(f"{path} is missing", hint)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadResource(f"{path} is damaged: {error}", hint) from error
    if not isinstance(content, dict):
        raise BadResource(f"{path} is damaged: not an object", hint)
    return content


def hash_folder(path: Path) -> str:
    """Return the sha256 (hex) of a file, or of a folder's files with their relative names.

    Hidden files and ``__pycache__`` are left out. Moving or touching a folder does not change its hash; renaming
    a file in it does. Raises ``MissingResource`` where there is nothing to hash.
    """
    if path.is_file():
        return _hash_file(path)
    if not path.is_dir():
        raise MissingResource(f"{path} is neither a file nor a folder", "Check the path's spelling.")
    total = hashlib.sha256()
    for file in sorted(path.rglob("*"), key=lambda found: found.relative_to(path).as_posix()):
        parts = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            total.update(f"{_hash_file(file)}  {'/'.join(parts)}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


LARGE = 2**26
"""Bytes from which a file is read once in a process, unless its size or its times change meanwhile."""


def _hash_file(path: Path) -> str:
    about = path.stat()
    if about.st_size < LARGE:
        return _read_and_hash(path)
    return _hash_large(path.resolve(), about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _hash_large(path: Path, size: int, modified: int, changed: int) -> str:
    return _read_and_hash(path)


def _read_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
