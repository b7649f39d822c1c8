"""Names that nobody knows: the nearest one that somebody does."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, names: Sequence[str]) -> str | None:
    """Return the name most like ``name``, or None when nothing is like it."""
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    if found:
        return lower[found[0]]
    inside = [other for other in names if len(name) > 1 and name.lower() in other.lower()]
    return inside[0] if inside else None


def unknown(name: str, names: Sequence[str]) -> str:
    """Say that ``name`` is none of ``names``, and which it may have been meant to be."""
    near = nearest(name, names)
    return f"unknown; did you mean {near}?" if near else f"unknown; there are {', '.join(names)}"
