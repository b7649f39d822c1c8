"""Every function and test that docs/paper-map.md names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8"))))


def test_the_map_names_functions_and_tests() -> None:
    assert len(NAMED) > 50
    assert {"rl/value_heads.py", "test_losses.py"} <= {path for path, _ in NAMED}


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_what_the_map_names_exists(path: str) -> None:
    (file,) = (ROOT / "tests").rglob(path) if path.startswith("test_") else [ROOT / "safebench" / path]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert {name for file, name in NAMED if file == path} <= defined
