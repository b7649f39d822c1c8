"""The arrows of docs/architecture.md hold, and each heavy library comes in by one door, and only when used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "safebench"
DOORS = {"trl": 2, "wandb": 1, "tensorboard": 1, "trackio": 1, "matplotlib": 1, "plotly": 1, "optuna": 1}
"""By how many files each comes in: TRL trains the embedded world, and is an arm or three."""
LIGHT = ("cli", "config", "registry", "errors", "analysis", "crashes", "report", "metrics")


@dataclass(frozen=True)
class Import:
    """One imported module by its full name, and whether it is loaded as soon as the file is."""

    module: str
    eager: bool


def module_name(path: Path) -> str:
    """safebench/rl/kl.py -> safebench.rl.kl; a package's __init__ is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _eager(tree: ast.Module) -> set[ast.AST]:
    """Collect the statements that run when the file is loaded: not in a function, not for type checkers only."""
    found: set[ast.AST] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        found.add(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """List what ``source`` imports anywhere; ``from package import submodule`` counts as the submodule."""
    tree = ast.parse(source)
    eager = _eager(tree)
    home = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES or not name.startswith("safebench") else origin for name in names]
        else:
            continue
        found += [Import(name, node in eager) for name in names]
    return found


IMPORTS = {
    name: imports_of(path.read_text(), name, is_package=path.name == "__init__.py") for name, path in MODULES.items()
}


def _names(cell: str) -> list[str]:
    return [name.removesuffix(".py").strip("/").replace("/", ".") for name in re.findall(r"`([^`]+)`", cell)]


@dataclass(frozen=True)
class Table:
    """docs/architecture.md: which room a name belongs to, what a room may import, and the leaves, open to all.

    A row is a room, called by the first name in it; a leaf is a room of its own.
    """

    rooms: dict[str, str]
    allowed: dict[str, set[str]]
    leaves: set[str]


def read_table(text: str) -> Table:
    """Read the table of rooms out of the page."""
    table = Table({}, {}, set())
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 3 or not (names := _names(cells[0])):
            continue
        if cells[1].startswith("leaves"):
            table.leaves.update(names)
            continue
        targets = re.sub(r"\(.*?\)", "", cells[2]).split(",")
        table.allowed[names[0]] = {target.strip().replace("/", ".") for target in targets} - {"–"}
        table.rooms.update(dict.fromkeys(names, names[0]))
    return table


TABLE = read_table((ROOT / "docs" / "architecture.md").read_text())


def inside(module: str) -> str:
    """safebench.rl.kl -> rl.kl; the package itself -> the empty string."""
    return module.removeprefix("safebench").strip(".")


def room_of(module: str) -> str | None:
    """safebench.scoring.pairs -> scoring; `python -m safebench` is the command line; None where no row says."""
    first = "cli" if inside(module) == "__main__" else inside(module).split(".")[0]
    return first if first in TABLE.leaves else TABLE.rooms.get(first)


def allows(importer: str, imported: str) -> bool:
    """Tell whether a module of ours may import another."""
    inner = inside(imported)
    if room_of(imported) in TABLE.leaves or not inner:
        return True
    room = room_of(importer)
    if room is None or room in TABLE.leaves:
        return False
    return room == room_of(imported) or any(f"{inner}.".startswith(f"{target}.") for target in TABLE.allowed[room])


def test_the_table_is_read() -> None:
    rooms = {"cli", "runner", "report", "training", "algorithms", "models", "recording", "analysis", "rl"}
    assert rooms <= set(TABLE.allowed)
    assert {"config", "registry", "errors", "metrics"} <= TABLE.leaves
    assert TABLE.allowed["rl"] == set()
    assert TABLE.allowed["recording"] == {"crashes", "rl"}
    assert TABLE.allowed["crashes"] == set()
    assert TABLE.allowed["analysis"] == {"crashes"}


def test_the_table_has_no_circle() -> None:
    def reach(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, f"{' -> '.join(path)} -> {room}"
        for target in TABLE.allowed[room] - TABLE.leaves:
            if (next_room := TABLE.rooms[target.split(".")[0]]) != room:
                reach(next_room, (*path, room))

    for room in TABLE.allowed:
        reach(room, ())


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import a.b
from typing import TYPE_CHECKING
from safebench import errors
from safebench.rl.kl import exact
if TYPE_CHECKING:
    import c
try:
    import d
except ImportError:
    pass
class K:
    import e
    def f(self):
        from . import sibling
        from ..errors import SafebenchError
"""
    assert set(imports_of(source, "safebench.rl.kl")) == {
        Import("a.b", True),
        Import("typing.TYPE_CHECKING", True),
        Import("safebench.errors", True),
        Import("safebench.rl.kl", True),
        Import("c", False),
        Import("d", True),
        Import("e", True),
        Import("safebench.rl", False),
        Import("safebench.errors", False),
    }


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("safebench.rl.kl", "safebench.models.policy", False),
        ("safebench.rl.kl", "safebench.rl.advantages", True),
        ("safebench.rl.kl", "safebench.errors", True),
        ("safebench.errors", "safebench.rl.kl", False),
        ("safebench.recording.recorder", "safebench.crashes.detect", True),
        ("safebench.recording.recorder", "safebench.analysis.statistics", False),
        ("safebench.metrics", "safebench.recording.recorder", False),
        ("safebench.config.schema", "safebench.config.schema", True),
        ("safebench.config.schema", "safebench.rl.kl", False),
        ("safebench.rl.kl", "safebench.config.schema", True),
        ("safebench.crashes.detect", "safebench.metrics", True),
        ("safebench.crashes.detect", "safebench.recording.recorder", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert allows(importer, imported) is allowed


def test_every_module_has_a_room() -> None:
    assert not [name for name in MODULES if inside(name) and room_of(name) is None], "no row in docs/architecture.md"


def test_the_arrows_hold() -> None:
    broken = {
        f"{name} imports {found.module}"
        for name, imports in IMPORTS.items()
        for found in imports
        if found.module.split(".")[0] == "safebench" and not allows(name, found.module)
    }
    assert not broken, "\n".join(sorted(broken))


def _is_of(library: str, module: str) -> bool:
    return f"{module}.".startswith((f"{library}.", f"torch.utils.{library}."))


def _importers(library: str) -> list[str]:
    return [name for name, imports in IMPORTS.items() if any(_is_of(library, found.module) for found in imports)]


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_its_door(library: str) -> None:
    assert len(_importers(library)) <= DOORS[library], _importers(library)


def _loaded_with(start: str, seen: set[str]) -> Iterator[str]:
    """Yield everything that importing ``start`` loads, as far as our own files tell."""
    for found in IMPORTS.get(start, ()):
        if found.eager and found.module not in seen:
            seen.add(found.module)
            yield found.module
            yield from _loaded_with(found.module, seen)


@pytest.mark.parametrize("start", ["safebench.cli.main", "safebench.runner.pool", "safebench.training.run"])
def test_a_heavy_library_is_loaded_only_when_used(start: str) -> None:
    loaded = [module for module in _loaded_with(start, set()) if any(_is_of(library, module) for library in DOORS)]
    assert not loaded


def test_the_light_modules_load_no_torch() -> None:
    light = [name for name in MODULES if name.removeprefix("safebench.").startswith(LIGHT)]
    assert light
    check = f"""
import importlib, sys
for name in {light!r}:
    importlib.import_module(name)
print(*sorted({{"torch", "transformers", *{tuple(DOORS)!r}}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
