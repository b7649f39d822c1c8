"""Writes the grid's tables and figure from the kept lines: ``python -m tools.grid_table FOLDER PAGE``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from safebench.analysis import overview
from safebench.analysis.overview import Block, brief
from safebench.analysis.statistics import Estimate
from safebench.report.cells import DASH, interval
from safebench.report.plots import plot_differences
from safebench.report.small_tables import render_brief
from safebench.report.table import markdown_row
from tools.marks import insert

BASELINE, WHOLE = "ppo", "safe"
"""The main arms are compared with the first; the second is the whole that the parts belong to."""
MAIN = (BASELINE, "ppo-official", "ppo-matched", "safe-official", WHOLE, "safe-predictive")
PARTS = ("safe-no-double-critic", "safe-no-gate", "safe-no-pid")
"""``safe`` without one of the parts on which its paper's claims rest."""
REPLICATE = f"{WHOLE}[compute.replicate=1]"
"""The same seeds of ``safe`` with sums in another order, as a control without a missing part. Its difference from
``safe`` is what rounding alone does to a row of the parts."""


MARK = "parts"
WORSE = {"judge_final": -1, "kl_mean": 1}
"""Sign of a difference from the whole that means: worse without the part."""
CLEAR = 1.86
"""An interval over six pairs that excludes zero at this multiple of its width also excludes it at 99.5 % (t, 5 degrees
of freedom, 4.77 against 2.57)."""
SAID = {0: "nothing shown", 1: "earns its place", -1: "stands in the way"}


def blocks(path: Path) -> list[Block]:
    """Return the grid's comparisons of the runs that the file keeps: the main arms, and the parts."""
    runs = [run for run in overview.read_packed(path) if run.preset == overview.PLAIN]

    def of(arms: Iterable[str]) -> dict[str, list[overview.Packed]]:
        return {arm: [run for run in runs if run.arm == arm] for arm in arms}

    return [
        brief(overview.PLAIN, of(MAIN), baseline=BASELINE),
        brief(overview.PLAIN, of((WHOLE, REPLICATE, *PARTS)), baseline=WHOLE),
    ]


def parts(path: Path) -> str:
    """Return a Markdown table of the differences of ``safe`` without each part from ``safe`` and from its replicate.

    In bold, the 95 % interval excludes zero. The last column is the verdict of docs/parts.md.
    """
    runs = [run for run in overview.read_packed(path) if run.preset == overview.PLAIN]
    arms = {arm: [run for run in runs if run.arm == arm] for arm in (WHOLE, REPLICATE, *PARTS)}
    whole, again = (
        {row.arm: row.differences for row in brief(overview.PLAIN, arms, baseline=base).rows}
        for base in (WHOLE, REPLICATE)
    )
    header = ["`safe` without", "judge − `safe`", "judge − replicate", "KL − `safe`", "KL − replicate", "so"]
    lines = [markdown_row(header), markdown_row(["---", *["---:"] * 4, "---"])]
    for arm in (REPLICATE, *PARTS):
        if arm not in whole:
            continue
        pairs = {key: (whole[arm][key], again[arm].get(key)) for key in WORSE}
        name = "nothing (the replicate)" if arm == REPLICATE else arm.removeprefix(f"{WHOLE}-no-").replace("-", " ")
        cells = [_bold(estimate) for pair in pairs.values() for estimate in pair]
        lines.append(markdown_row([name, *cells, "what rounding does" if arm == REPLICATE else _verdict(pairs)]))
    return "\n".join(lines) + "\n"


def _bold(estimate: Estimate | None) -> str:
    if estimate is None:
        return DASH
    text = interval(estimate, sign=True)
    return f"**{text}**" if _side(estimate) else text


def _side(estimate: Estimate, widths: float = 1.0) -> int:
    """Return the side of zero on which the interval, at ``widths`` times its width, lies; 0 if it includes zero."""
    low, high = (estimate.value + widths * (bound - estimate.value) for bound in (estimate.low, estimate.high))
    return (low > 0) - (high < 0)


def _verdict(pairs: Mapping[str, tuple[Estimate, Estimate | None]]) -> str:
    """Return the verdict on a part from its differences to ``safe`` and to the replicate, by figure."""
    told = []
    for key, found in pairs.items():
        both = [estimate for estimate in found if estimate is not None]
        sides = {WORSE[key] * _side(estimate) for estimate in both}
        if len(both) == 2 and len(sides) == 1 and (side := sides.pop()):
            clear = all(_side(estimate, CLEAR) for estimate in both)
            told.append(f"{SAID[side]}{', clear' if clear else ''} ({'judge' if key == 'judge_final' else 'KL'})")
    return "; ".join(told) or SAID[0]


def tables(path: Path) -> str:
    """Return the tables of the runs that the file keeps, as Markdown."""
    return render_brief(blocks(path), "md")


def main(folder: str, page: str) -> None:
    """Write table and figure beside the ``runs.csv`` in ``folder``, and the table of parts into ``page``."""
    path = Path(folder) / "runs.csv"
    Path(page).write_text(insert(Path(page).read_text(encoding="utf-8"), MARK, parts(path)), encoding="utf-8")
    path.with_name("table.md").write_text(tables(path), encoding="utf-8")
    drawn = plot_differences(blocks(path), path.with_name("differences.png"))
    print(path.with_name("table.md"), *drawn, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
