"""What became of an imported history, in words for the one who imported it."""

from __future__ import annotations

from collections.abc import Sequence

from safebench.foreign.convert import Taken
from safebench.foreign.importing import Imported
from safebench.metrics import CRASH_KINDS


def describe(imported: Imported) -> str:
    """Return the report of an import: columns with their source, keys left out and why, crashes that nobody can see."""
    lines = [f"imported {imported.trainer} as {imported.arm}, {_steps(imported)}: {imported.folder}"]
    lines += _section("kept", [_taken(one) for one in imported.kept])
    lines += _section("converted", [_taken(one) for one in imported.converted])
    lines += _section("left out (foreign.csv has them)", [f"{key}: {why}" for key, why in imported.left])
    lines += _section("assumed, since the history does not say", imported.assumed)
    lines += _section("gaps", imported.gaps)
    lines += _section("notes", imported.notices)
    lines += _section("not watched, which is not the same as no crash", _blind(imported, wholly=True))
    lines += _section("watched in part only", _blind(imported, wholly=False))
    seen = [kind for kind in CRASH_KINDS if kind not in {one.kind for one in imported.blind if one.wholly}]
    return "\n".join([*lines, f"watched: {', '.join(seen) or 'nothing'}"])


def _steps(imported: Imported) -> str:
    of = "" if imported.planned == imported.steps else f" of {imported.planned} planned"
    return f"{imported.steps} steps{of}"


def _taken(one: Taken) -> str:
    return f"{one.ours} = {one.formula}" + (f" ({one.note})" if one.note else "")


def _blind(imported: Imported, *, wholly: bool) -> list[str]:
    return [f"{one.kind}: {', '.join(one.reasons)}" for one in imported.blind if one.wholly == wholly]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    found = [f"  {line}" for line in lines]
    return [f"{title}:", *found] if found else []
