"""The README's table, written from the runs that are kept: ``python -m safebench.report.excerpt README.md FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from safebench.evidence import runs
from safebench.evidence.compare import compare
from safebench.evidence.selection import choose
from safebench.report.marks import insert
from safebench.report.table import table_lines

MARK = "table"
ARMS = ("ppo", "safe")
METRICS = (
    "proxy_peak",
    "judge_peak",
    "proxy_final",
    "judge_final",
    "judge_matched",
    "kl_mean",
    "kl_final",
    "entropy_final",
    "distinct_final",
    "known_words_final",
    "relevance_final",
    "length_final",
    "crash_rate",
    "crash/entropy_collapse",
    "crash/kl_runaway",
    "time_update",
    "memory_peak",
)
"""Rows of the whole table that the README shows."""


def excerpt(root: Path) -> str:
    """Return the README's rows of the comparison of the runs below ``root``, as a Markdown table."""
    found = runs.find(root)
    comparison = compare({arm: [run for run in found if run.experiment == arm] for arm in ARMS})
    there = {row.scalar.key for row in comparison.rows}
    return table_lines(choose(comparison, [key for key in METRICS if key in there]))


def main(page: str, root: str) -> None:
    """Write the table into ``page``."""
    path = Path(page)
    path.write_text(insert(path.read_text(encoding="utf-8"), MARK, excerpt(Path(root))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
