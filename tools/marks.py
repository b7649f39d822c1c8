"""Inserts generated text between two marks of a hand-written page."""

from __future__ import annotations

from safebench.errors import BadResource


def insert(page: str, name: str, content: str) -> str:
    """Return ``page`` with ``content`` between ``<!-- name: start -->`` and ``<!-- name: end -->``.

    Raises ``BadResource`` if either mark is missing.
    """
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BadResource(f"no {start} … {end} in the page", "Put both marks where the text is to stand.")
    return f"{before}{start}\n{content}{end}{after}"
