"""docs/import.md says what the tables of keys do."""

from __future__ import annotations

from pathlib import Path

from safebench.importers.keys import TRAINERS
from tools import import_page as page

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_tables() -> None:
    assert (ROOT / "docs" / "import.md").read_text() == page.render(), page.__doc__


def test_every_key_of_every_trainer_stands_in_it() -> None:
    text = page.render()
    for trainer in TRAINERS:
        section = text.split(f"## {trainer.name}\n")[1].split("\n## ")[0]
        for line in trainer.keys:
            assert all(f"`{name}`" in section for name in line.names), line.names
            assert line.ours is None or f"`{line.ours}`" in section
