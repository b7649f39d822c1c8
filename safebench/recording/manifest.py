"""Write and read manifest.json: versions, commit, hardware, command, hashes, constants measured at a run's start."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import safebench
from safebench import registry, user_code
from safebench.config.schema import Settings
from safebench.errors import BadResource, MissingResource
from safebench.recording.files import now, write_atomic
from safebench.recording.jsonl import plain

PACKAGES = (
    "safebench",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pandas",
    "scipy",
    "pydantic",
    "wandb",
)

_SOURCES = ("safebench", "experiments", "pyproject.toml")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package by its metadata, None if it is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output, or None if there is no git, no repository, or no output in time."""
    # Drop git's variables: the GIT_DIR of a hook would point at another repository than the folder's.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def checkout(package: Path | None = None) -> dict[str, Any] | None:
    """Return the commit of the checkout that the package runs from and its dirtiness; None for an installed copy.

    A checkout is dirty if code or experiments differ from the commit. A package that lies in another repository without
    being tracked there (an environment in a project's folder) is an installed copy.
    """
    folder = package or Path(safebench.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder.parent, "status", "--porcelain", "--", *_SOURCES)
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware(device: str) -> dict[str, Any]:
    """Return processor, cores, memory in MiB, and the training device's name as given by the caller."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_mib": memory // 2**20,
        "device": device,
    }


def hashes_of(settings: Settings) -> dict[str, str]:
    """Return the sha256 of model, reward, judge and prompts, wherever they are stored on this machine."""
    named = {
        "model": None if settings.model.random_weights else registry.model_source(settings.model.name),
        "reward": registry.reward_source(settings.reward.name),
        "judge": registry.reward_source(settings.reward.judge) if settings.reward.judge else None,
        "prompts": registry.find("prompts", settings.prompts.name),
    }
    hashes = {name: hash_of_entry(entry) for name, entry in named.items() if entry is not None}
    if settings.model.random_weights:
        hashes["model"] = f"random weights of {settings.model.name}, seed {settings.seed}"
    return hashes


def hash_of_entry(entry: registry.Entry) -> str:
    """Return the sha256 of the entry's files, or its hub id if this machine has no copy of them.

    Weights in another package are checked against their sha256 whenever they are loaded.
    """
    if entry.kind == "function":
        source = user_code.source_of(entry.load())
        return hash_folder(Path(source)) if source else entry.location
    if entry.packaged is not None:
        return entry.packaged.sha256
    if entry.kind == "hub":
        copy = registry.local_copy(entry.location, "dataset" if entry in registry.PROMPTS else "model")
        return hash_folder(copy) if copy else entry.location
    return hash_folder(Path(entry.location))


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

    ``hashes``: sha256 by name: model, reward, judge, prompts, … (see ``hash_folder``). ``sigma0``: standard deviation
    of the proxy reward under the initial policy, in reward units. ``vocabulary``: number of tokens the policy chooses
    from. ``measured``: other values that were measured before the first step, such as ``judge_sigma0``; the manifest
    holds them next to ``sigma0`` and ``vocabulary``. ``command``: ``sys.argv`` by default.
    """
    return {
        **(measured or {}),
        "sigma0": sigma0,
        "vocabulary": vocabulary,
        "started": now(),
        "command": shlex.join(sys.argv if command is None else command),
        "hashes": dict(hashes),
        "versions": versions(),
        "git": checkout(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": hardware(device),
    }


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace manifest.json in ``folder``."""
    data = json.dumps(plain(manifest), indent=2, allow_nan=False)
    write_atomic(folder / FILE, f"{data}\n".encode(), durable=True)


def read(folder: Path) -> dict[str, Any]:
    """Return manifest.json of ``folder``; raise ``BadResource`` if it is missing or damaged.

    A resumed run reads ``sigma0`` and the other measured values from here and does not measure them again.
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

    Hidden files and ``__pycache__`` are left out. Moving or touching a folder does not change its hash; renaming a file
    in it does. Raises ``MissingResource`` if ``path`` is neither a file nor a folder.
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
"""Size in bytes from which a file's hash is cached in the process, until the file's size or times change."""


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
