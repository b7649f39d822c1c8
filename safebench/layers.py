"""Layers of settings: where experiments and presets lie, and one mapping laid over another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safebench import yaml_text
from safebench.names import nearest

Path_ = tuple[str, ...]
"""A key's full path, one part per level."""

BASE = "_base"

_LONGEST_NAME = 200
"""Characters; file systems end soon after, and say so by an error."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the settings."""

    key: str
    message: str
    source: str = ""
    value: str = ""

    def __str__(self) -> str:
        what = f"{self.key} = {self.value}" if self.value else self.key
        origin = f" ({self.source})" if self.source else ""
        return f"{what}: {self.message}{origin}" if what else f"{self.message}{origin}"


@dataclass
class Stack:
    """Layers laid on one another so far: the values, where each came from, and what was wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Path_, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def lay(self, layer: Mapping[str, Any], source: str) -> None:
        """Lay ``layer`` on top: mappings merge key by key, anything else replaces."""
        _merge(self.values, layer, (), source, self.sources)

    def source(self, path: Path_) -> str:
        """Return where the value at ``path``, or the nearest section above it, came from."""
        while path:
            if path in self.sources:
                return self.sources[path]
            path = path[:-1]
        return ""

    def fault(self, key: str, message: str, source: str = "") -> None:
        """Note what is wrong and go on."""
        self.faults.append(Fault(key, message, source))


def _merge(
    below: dict[str, Any], layer: Mapping[str, Any], path: Path_, source: str, sources: dict[Path_, str]
) -> None:
    for key, value in layer.items():
        here = (*path, key)
        sources[here] = source
        if isinstance(value, Mapping):
            inner = below.get(key)
            below[key] = inner if isinstance(inner, dict) else {}
            _merge(below[key], value, here, source, sources)
        else:
            below[key] = value


def folders() -> list[Path]:
    """Return the folders that hold experiments: the current one's, the package's, the repository's."""
    package = Path(__file__).parent
    places = (Path.cwd() / "experiments", package / "experiments", package.parent / "experiments")
    return [place for place in dict.fromkeys(place.resolve() for place in places) if place.is_dir()]


def is_path(name: str) -> bool:
    """Say whether ``name`` is the path of a YAML file rather than a name."""
    return name.endswith((".yaml", ".yml"))


def locate(name: str, kind: str = "") -> Path | None:
    """Return the file of the experiment called ``name``, or of the preset when ``kind`` is ``presets``."""
    if len(name) > _LONGEST_NAME:
        return None
    for folder in folders():
        path = folder / kind / f"{name}.yaml"
        if path.is_file():
            return path
    return None


def names(kind: str = "") -> dict[str, Path]:
    """Return all experiments (or ``presets``) by name, in alphabetical order; a nearer folder wins."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((folder / kind).glob("*.yaml")):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def read_mapping(path: Path, stack: Stack) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; a file that holds none is a fault."""
    try:
        value = yaml_text.read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        stack.fault("", f"{path}: cannot be read: {reason}")
        return {}
    except ValueError as error:
        stack.fault("", f"{path}: not valid YAML: {error}")
        return {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        stack.fault("", f"{path}: holds no keys and values")
        return {}
    return value


def chain(path: Path, stack: Stack) -> list[tuple[Path, dict[str, Any]]]:
    """Return the files that the experiment at ``path`` is made of, base first, with their contents."""
    files = list(_ancestors(path, stack))
    base = locate(BASE)
    if base is not None and all(file.stem != BASE for file, _ in files):
        files.append((base, read_mapping(base, stack)))
    return files[::-1]


def _ancestors(path: Path, stack: Stack) -> Iterator[tuple[Path, dict[str, Any]]]:
    seen: list[Path] = []
    here: Path | None = path
    while here is not None:
        if here.resolve() in seen:
            stack.fault("extends", "goes round in a circle: " + " < ".join(p.stem for p in [*seen, here]), str(path))
            return
        seen.append(here.resolve())
        content = read_mapping(here, stack)
        parent = content.pop("extends", None)
        yield here, content
        here = _parent(parent, here, stack)


def _parent(parent: Any, child: Path, stack: Stack) -> Path | None:
    if parent is None:
        return None
    if not isinstance(parent, str):
        stack.fault("extends", f"must name one experiment, not {parent!r}", str(child))
        return None
    beside = child.parent / (parent if is_path(parent) else f"{parent}.yaml")
    found = beside if beside.is_file() else locate(parent)
    if found is None:
        near = nearest(parent, list(names()))
        stack.fault("extends", f"no experiment {parent!r}" + (f"; did you mean {near}?" if near else ""), str(child))
    return found
