"""Read another trainer's history, and say what became of each of its quantities."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safebench import yaml_text
from safebench.errors import UsageError
from safebench.importers.importing import describe, import_history


def read(path: Path, root: Path, known: Sequence[str], overwrite: bool, **options: Any) -> None:
    """Import the history in ``path`` and print what was kept, converted and left."""
    exists: Literal["error", "overwrite"] = "overwrite" if overwrite else "error"
    command = ["safebench", *sys.argv[1:]]
    imported = import_history(path, root=root, known=_known(known), if_exists=exists, command=command, **options)
    print(describe(imported))


def _known(settings: Sequence[str]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--known {setting!r} has no =", "Write name=value, such as vf_coef=0.1.")
        found[key] = yaml_text.read(text)
    return found
