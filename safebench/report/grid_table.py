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
"""Arms that also ran under each stress preset, in the order of the table."""
PARTS = (
    *("safe-no-double-critic", "safe-no-layer-norm", "safe-no-gate", "safe-no-pid", "safe-no-phase"),
    *("safe-no-asymmetry", "safe-no-reward-norm", "safe-no-entropy-bonus", "safe-no-target-critic"),
    "safe-momentum",
)
"""``safe`` with one part off, or with parts in another form."""
AGAIN = f"{WHOLE} (other rounding)"
"""The same seeds of ``safe`` from before a gradient was summed in another order: a part that is none, in a file of its
own. What it differs by is what chance alone does to a row of the parts."""
PRESETS = ("default", "stress-lr3", "stress-lr10", "stress-noise", "stress-shift")


def blocks(path: Path) -> list[Block]:
    """Return the grid's comparisons: the main arms, the parts, and the main arms under each stress preset.

    ``replicate.csv`` lies beside ``path``.
    """
    runs = packed.read(path)
    again = {AGAIN: packed.read(path.with_name("replicate.csv"))}

    def of(preset: str, arms: Iterable[str]) -> dict[str, list[packed.Packed]]:
        return {arm: [run for run in runs if (run.arm, run.preset) == (arm, preset)] for arm in arms}

    plain, *stressed = PRESETS
    return [
        brief(plain, of(plain, MAIN), baseline=BASELINE),
        brief(plain, of(plain, (WHOLE,)) | again | of(plain, PARTS), baseline=WHOLE),
        *(brief(preset, of(preset, MAIN), baseline=BASELINE) for preset in stressed),
    ]


def tables(path: Path) -> str:
    """Return the tables as Markdown, of the runs that the file keeps."""
    return render(blocks(path), "md")


def main(folder: str) -> None:
    """Write ``table.md`` beside the ``runs.csv`` in ``folder``, and the default preset's differences as a figure."""
    path = Path(folder) / "runs.csv"
    path.with_name("table.md").write_text(tables(path), encoding="utf-8")
    drawn = plot_differences(blocks(path)[:2], path.with_name("differences.png"))
    print(path.with_name("table.md"), *drawn, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
