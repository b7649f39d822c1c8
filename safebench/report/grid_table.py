"""The grid's tables and figure, from the lines that are kept: ``python -m safebench.report.grid_table FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from safebench.evidence import packed
from safebench.evidence.brief import Block, brief
from safebench.report.brief import render
from safebench.report.plots import plot_differences

BASELINE, WHOLE = "ppo", "safe"
"""What the main arms are compared with, and what the parts are parts of."""
MAIN = (BASELINE, "ppo-official", "ppo-matched", "safe-official", WHOLE, "safe-predictive")
PARTS = ("safe-no-double-critic", "safe-no-gate", "safe-no-pid")
"""``safe`` without one of the parts that its paper's claims are made of."""
REPLICATE = f"{WHOLE}[compute.replicate=1]"
"""The same seeds of ``safe`` with sums in another order: a part that is none. What it differs by is what rounding alone
does to a row of the parts."""


def blocks(path: Path) -> list[Block]:
    """Return the grid's comparisons, of the runs that the file keeps: the main arms, and the parts."""
    runs = [run for run in packed.read(path) if run.preset == packed.PLAIN]

    def of(arms: Iterable[str]) -> dict[str, list[packed.Packed]]:
        return {arm: [run for run in runs if run.arm == arm] for arm in arms}

    return [
        brief(packed.PLAIN, of(MAIN), baseline=BASELINE),
        brief(packed.PLAIN, of((WHOLE, REPLICATE, *PARTS)), baseline=WHOLE),
    ]


def tables(path: Path) -> str:
    """Return the tables as Markdown, of the runs that the file keeps."""
    return render(blocks(path), "md")


def main(folder: str) -> None:
    """Write ``table.md`` beside the ``runs.csv`` in ``folder``, and the differences as a figure."""
    path = Path(folder) / "runs.csv"
    path.with_name("table.md").write_text(tables(path), encoding="utf-8")
    drawn = plot_differences(blocks(path), path.with_name("differences.png"))
    print(path.with_name("table.md"), *drawn, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
