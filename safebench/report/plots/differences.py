"""Draws the brief table's differences: a row per arm, its interval against the line at zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safebench.errors import UsageError
from safebench.evidence.brief import COMPARED, ArmRow, Block
from safebench.evidence.scalars import BY_KEY
from safebench.report.plots import canvas
from safebench.report.plots.panels import COLORS, GREY

WIDTH, ROW_HEIGHT, BLOCK_HEIGHT = 10.0, 0.24, 0.95
"""Inches: of the figure, of a row, and of a block's title and axis."""
BETTER = {"up": "better →", "down": "← better", "none": ""}


def plot_differences(blocks: Sequence[Block], path: Path | str) -> list[Path]:
    """Draw each block's differences to its baseline, with their intervals, and return the files written.

    A block is a row of panels, one for each figure of COMPARED; ``path`` as in ``plot_runs``. An arm without the
    figure has an empty row. Raises ``UsageError`` for another ending, or where no block has a difference.
    """
    wanted = canvas.files(path)
    rows = [[row for row in block.rows if row.differences] for block in blocks]
    shown = [(block, found) for block, found in zip(blocks, rows, strict=True) if found]
    if not shown:
        raise UsageError("there is nothing to draw: no arm stands beside a baseline", "Name two arms that have runs.")
    heights = [BLOCK_HEIGHT + ROW_HEIGHT * len(found) for _, found in shown]
    with canvas.drawn(wanted, (WIDTH, sum(heights))) as figure:
        grid = figure.subplots(len(shown), len(COMPARED), squeeze=False, height_ratios=heights)
        for places, (block, found) in zip(grid, shown, strict=True):
            for axes, key in zip(places, COMPARED, strict=True):
                _panel(axes, key, block, found, named=key == COMPARED[0])
    return wanted


def _panel(axes: Any, key: str, block: Block, rows: Sequence[ArmRow], *, named: bool) -> None:
    scalar = BY_KEY[key]
    axes.axvline(0.0, color=GREY, linewidth=1.0)
    for place, row in enumerate(rows):
        _interval(axes, place, row, key)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows] if named else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"{block.preset}: {scalar.label} − {block.baseline}'s")
    axes.set_xlabel("  ".join(part for part in (scalar.unit, BETTER[scalar.direction]) if part))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _interval(axes: Any, place: int, row: ArmRow, key: str) -> None:
    """Draw the difference, full where its interval leaves zero out, hollow where it does not."""
    found = row.differences[key]
    if not math.isfinite(found.value):
        return
    apart = found.low > 0 or found.high < 0
    if math.isfinite(found.margin):
        axes.plot([found.low, found.high], [place, place], color=COLORS[0], linewidth=1.7, solid_capstyle="butt")
    face = COLORS[0] if apart else "white"
    axes.plot(found.value, place, marker="o", markersize=6, color=COLORS[0], markerfacecolor=face)


def _label(row: ArmRow) -> str:
    pairs = "unpaired" if row.common is None else f"{len(row.common)} pair{'' if len(row.common) == 1 else 's'}"
    return f"{row.arm} ({pairs})"
