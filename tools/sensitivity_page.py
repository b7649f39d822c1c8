"""Writes the tables of sensitivity into a page: ``python -m tools.sensitivity_page PAGE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from safebench.analysis import runs
from safebench.analysis.sensitivity import sensitivity
from safebench.report.small_tables import sensitivity_to_markdown
from tools.marks import insert

MARK = "sensitivity"
ARMS = ("ppo", "safe")


def from_runs(root: Path) -> str:
    """Return the tables of the runs below ``root``, for the two arms of the headline."""
    found = runs.find(root)
    return sensitivity_to_markdown(
        sensitivity({arm: [run for run in found if run.experiment == arm] for arm in ARMS}), ARMS
    )


def main(page: str, root: str) -> None:
    """Write the tables into ``page``."""
    path = Path(page)
    path.write_text(insert(path.read_text(encoding="utf-8"), MARK, from_runs(Path(root))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
