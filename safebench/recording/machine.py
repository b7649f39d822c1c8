"""What a run ran on: packages, commit, processor and memory, read without importing any of them."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import safebench

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
    """Return the installed version of each package by its metadata, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's answer, None where there is no git, no repository, or no answer in time."""
    # A hook's GIT_DIR would point at another repository than the folder's.
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
    """Return commit and dirtiness of the checkout that the package runs from; None for an installed copy.

    Dirty: code or experiments differ from the commit. A package that lies in somebody else's repository
    without being tracked there (an environment in a project's folder) is an installed copy.
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
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware(device: str) -> dict[str, Any]:
    """Return processor, cores, memory in MiB and the name of the training device as the caller knows it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_mib": memory // 2**20,
        "device": device,
    }
