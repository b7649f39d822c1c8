"""The difference of two runs as plain text in aligned columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from safebench.analysis.diff_runs import ABSENT, TOLERANCE, Difference, Part

WIDTH = 100


def to_text(difference: Difference, width: int = WIDTH) -> str:
    """Return the text, no line longer than ``width`` (at least 40)."""
    first, second = difference.names
    lines = [f"first   {first}: {_ended(difference, 0)}", f"second  {second}: {_ended(difference, 1)}"]
    for title, unequal in (
        ("Settings", difference.settings),
        ("Files (sha256)", difference.hashes),
        ("Constants", difference.constants),
        ("Environment", difference.environment),
    ):
        lines += ["", *_block(title, unequal, width)]
    lines += ["", *_curves(difference, width)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _ended(difference: Difference, side: int) -> str:
    return f"{difference.status[side]}, {difference.steps[side]} steps"


def _block(title: str, unequal: Mapping[str, tuple[Any, Any]], width: int) -> list[str]:
    if not unequal:
        return [f"{title}: equal"]
    rows = [(key, _shown(first), _shown(second)) for key, (first, second) in unequal.items()]
    return [title, *_aligned([("", "first", "second"), *rows], width)]


def _curves(difference: Difference, width: int) -> list[str]:
    common = difference.common
    if not common:
        return ["Curves: the runs have no step in common"]
    lines = [f"Curves, over steps {common[0]} to {common[-1]} that both have"]
    if difference.equal:
        lines.append(f"  equal in every digit, in all {len(difference.parts)} columns that both measured")
    elif difference.first is not None:
        part = difference.first
        words = (
            f"{part.column} parts first, at step {part.differs}: {part.first or ABSENT} against {part.second or ABSENT}"
        )
        lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
        rows = [_group(name, parts) for name, parts in difference.groups.items()]
        heads = ("columns", "differ from step", f"by > {TOLERANCE:g} from", "first in")
        lines += _aligned([heads, *rows], width)
    alone = [f"{part.column} ({part.alone} steps)" for part in difference.parts if part.alone]
    if alone:
        words = f"measured by one run alone at some steps: {', '.join(alone)}"
        lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
    for name, only in zip(("first", "second"), difference.only, strict=True):
        if only:
            words = f"measured only in the {name}: {', '.join(only)}"
            lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def _group(name: str, parts: Sequence[Part]) -> tuple[str, str, str, str]:
    """Return a group's first steps, and the columns that part at the earlier one."""
    differs = min((part.differs for part in parts if part.differs is not None), default=None)
    beyond = min((part.beyond for part in parts if part.beyond is not None), default=None)
    columns = [part.column for part in parts if part.differs is not None and part.differs == differs]
    more = f" and {len(columns) - 1} more" if len(columns) > 1 else ""
    told = "never" if differs is None else str(differs)
    return name, told, "never" if beyond is None else str(beyond), f"{columns[0]}{more}" if columns else ABSENT


def _aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Align columns, the first as wide as it must, the others cut in the middle to share what is left."""
    name = max(len(row[0]) for row in rows)
    others = len(rows[0]) - 1
    room = max(8, (width - 2 - name - 2 * others) // others)
    cut = [[row[0], *(_cut(cell, room) for cell in row[1:])] for row in rows]
    widths = [max(len(row[index]) for row in cut) for index in range(others + 1)]
    return ["  " + "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)) for row in cut]


def _cut(text: str, room: int) -> str:
    """Keep both ends of a text that is too long: versions part at the end, names at the beginning."""
    if len(text) <= room:
        return text
    head = (room - 1) // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
