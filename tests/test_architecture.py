"""Each heavy library comes in by one door, and only when used; every package has its line in docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import tree_page
from tools.marks import insert

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


def inside(module: str) -> str:
    """safebench.rl.kl -> rl.kl; the package itself -> the empty string."""
    return module.removeprefix("safebench").strip(".")


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


def test_the_tree_is_that_of_the_docstrings() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert insert(page, tree_page.MARK, tree_page.tree()) == page, "python -m tools.tree_page docs/architecture.md"


def test_every_module_has_a_clause() -> None:
    silent = [line for line in tree_page.lines() if len(line.split()) < 3]
    assert silent == []


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
