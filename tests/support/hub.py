"""The hub's local cache, as its library lays it out."""

from __future__ import annotations

from pathlib import Path


def name_main(snapshot: Path) -> None:
    """Let a snapshot of the cache be that of the main revision."""
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(snapshot.name, encoding="utf-8")
