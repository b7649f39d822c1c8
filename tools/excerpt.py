"""Writes the tables of the kept runs into pages: ``python -m tools.excerpt PAGE FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safebench.analysis import runs
from safebench.analysis.compare import Comparison, choose, compare
from safebench.report.table import markdown_row, table_lines
from tools.marks import insert

ARMS = ("ppo", "safe")
TUNED_ARMS = ("ppo-tuned", "safe-tuned")
METRICS = (
    "judge_final",
    "judge_matched",
    "crash_rate",
    "proxy_final",
    "kl_mean",
    "distinct_final",
    "time_update",
    "memory_peak",
)
"""Rows of the whole table that the README shows for the comparison as published."""
TUNED_METRICS = METRICS[:-2]
"""Rows that it shows for the comparison as tuned."""


def comparison_of(root: Path, arms: Sequence[str]) -> Comparison:
    """Return the comparison of these arms' runs below ``root``."""
    found = runs.find(root)
    return compare({arm: [run for run in found if run.experiment == arm] for arm in arms})


def excerpt(root: Path) -> str:
    """Return the README's rows of the comparison as published, as a Markdown table."""
    return _rows(comparison_of(root, ARMS), METRICS)


def tuned_excerpt(root: Path) -> str:
    """Return the README's rows of the comparison as tuned, as a Markdown table."""
    return _rows(comparison_of(root, TUNED_ARMS), TUNED_METRICS)


def _rows(comparison: Comparison, metrics: Sequence[str]) -> str:
    there = {row.scalar.key for row in comparison.rows}
    return table_lines(choose(comparison, [key for key in metrics if key in there]))


def points(root: Path) -> str:
    """Return every point that was tried in tuning the two arms, with its pilot runs, as Markdown tables."""
    return "\n".join(_points(json.loads((root / "tuning" / f"{arm}.json").read_text(encoding="utf-8"))) for arm in ARMS)


def _points(search: Mapping[str, Any]) -> str:
    names = list(search["knobs"])
    header = [
        f"`{search['experiment']}`",
        *(f"`{name}`" for name in names),
        *(f"seed {seed}" for seed in search["seeds"]),
        "mean",
        "crashed",
    ]
    lines = [markdown_row(header), markdown_row(["---", *["---:"] * (len(header) - 1)])]
    for point in search["points"]:
        bold = "**" if point["number"] == search["winner"] else ""
        cells = [
            f"{point['number']}{', as published' if point['source'] == 'published' else ''}",
            *(f"{point['values'][name]:g}" for name in names),
            *(f"{run['value']:.3f}" for run in point["runs"]),
            f"{bold}{point['mean']:.3f}{bold}",
            f"{sum(run['crashed'] for run in point['runs'])} of {len(point['runs'])}",
        ]
        lines.append(markdown_row([cell.replace("-", "−") if cell[0] == "-" else cell for cell in cells]))
    return "\n".join(lines) + "\n"


MARKS: Mapping[str, Callable[[Path], str]] = {"table": excerpt, "tuned": tuned_excerpt, "tuning": points}
"""The function that makes the table between each pair of marks of a page."""


def main(page: str, root: str) -> None:
    """Write into ``page`` those of the tables for which it has marks."""
    path = Path(page)
    text = path.read_text(encoding="utf-8")
    for mark, make in MARKS.items():
        if f"<!-- {mark}: start -->" in text:
            text = insert(text, mark, make(Path(root)))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
