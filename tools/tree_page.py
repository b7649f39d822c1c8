"""Writes the package's tree, with a clause for each module, into a page: ``python -m tools.tree_page PAGE``."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.marks import insert

PACKAGE = Path("safebench")
MARK = "tree"
WIDTH = 24
"""Width, in columns, of a name with its indent."""


def clause(path: Path) -> str:
    """Return the first paragraph of a module's docstring as one line."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def lines(package: Path = PACKAGE, depth: int = 0) -> Iterator[str]:
    """Yield a line for the package, for each of its packages and for each of its modules."""
    yield _line(f"{package.name}/", depth, clause(package / "__init__.py"))
    for folder in sorted(path.parent for path in package.glob("*/__init__.py")):
        yield from lines(folder, depth + 1)
    for module in sorted(package.glob("*.py")):
        if module.name not in ("__init__.py", "__main__.py"):
            yield _line(module.name, depth + 1, clause(module))


def _line(name: str, depth: int, text: str) -> str:
    return f"{'  ' * depth + name:<{WIDTH}} {text}".rstrip()


def tree() -> str:
    """Return the tree as a Markdown code block."""
    return "\n".join(["```", *lines(), "```"]) + "\n"


def main(page: str) -> None:
    """Write the tree into ``page``."""
    path = Path(page)
    path.write_text(insert(path.read_text(encoding="utf-8"), MARK, tree()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
