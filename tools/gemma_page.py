"""Write the evaluations of the kept runs on Gemma 3 270M into a page: ``python -m tools.gemma_page PAGE RUNS``."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from safebench.analysis import runs
from safebench.analysis.scalars import summarise
from safebench.report.table import markdown_row
from tools.marks import insert

MARK = "gemma"
COLUMNS = {
    "eval/reward": "proxy",
    "eval/judge": "judge",
    "eval/kl": "KL, nats per token",
    "eval/distinct": "distinct replies",
    "eval/known_words": "known words",
}


def table(root: Path) -> str:
    """Return, as a Markdown table, a row for each evaluation of each run below ``root``."""
    header = ["run", "step", *COLUMNS.values(), "crashed by the end"]
    lines = [markdown_row(header), markdown_row(["---", *["---:"] * (len(header) - 2), "---"])]
    for run in sorted(runs.find(root), key=lambda run: (run.experiment, run.seed)):
        crashed = "yes" if summarise(run).crashed else "no"
        for at, step in enumerate(run.column("step")):
            if math.isnan(run.column("eval/judge")[at]):
                continue
            figures = [f"{run.column(key)[at]:.3f}".replace("-", "−") for key in COLUMNS]
            name = f"`{run.experiment.partition('@')[0]}`, seed {run.seed}, {run.planned_steps} steps"
            lines.append(markdown_row([name, f"{step:.0f}", *figures, crashed]))
    return "\n".join(lines) + "\n"


def main(page: str, root: str) -> None:
    """Write the table into ``page``."""
    path = Path(page)
    path.write_text(insert(path.read_text(encoding="utf-8"), MARK, table(Path(root))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
