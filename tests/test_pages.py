"""Every file of ours that a page names is there (docs/import.md names those of other projects)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
TREE = re.compile(r"<!-- tree: start -->.*?<!-- tree: end -->", re.DOTALL)
OTHERS = ("my_rewards.py", "clip_higher.py", "ppo_trainer.py", "setup.py")
"""Files of users and of other projects."""


def there(name: str) -> bool:
    """Say whether a file is there, named from the top, from the package, from the page's folder, or as a test."""
    places = [ROOT / name, ROOT / "safebench" / name, ROOT / "docs" / name]
    tests = (name, f"test_trl_defects_{name}")  # docs/from-trl.md names these by their ends
    return any(place.exists() for place in places) or ("/" not in name and any(map(_is_test, tests)))


def _is_test(name: str) -> bool:
    return any((ROOT / "tests").rglob(name))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "import.md"], ids=lambda page: page.name)
def test_the_modules_that_a_page_names_are_there(page: Path) -> None:
    text = re.sub(r"\[[^\]]*\]\(", "(", TREE.sub("", page.read_text(encoding="utf-8")))  # a link's text may be short
    named = set(re.findall(r"(?<![\w…])[\w./-]*\w\.py\b", text)) - set(OTHERS)
    assert sorted(name for name in named if not there(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
