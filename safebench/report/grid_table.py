"""The grid's table, written from the lines that are kept: ``python -m safebench.report.grid_table FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from safebench.evidence import packed
from safebench.evidence.brief import brief
from safebench.report.brief import render

BASELINE = "ppo"
ARMS = (
    *(BASELINE, "ppo-official", "ppo-matched", "safe-official", "safe-published", "safe", "safe-predictive"),
    *("safe-no-double-critic", "safe-no-layer-norm", "safe-no-gate", "safe-no-pid", "safe-no-phase"),
    *("safe-no-asymmetry", "safe-no-reward-norm", "safe-no-entropy-bonus", "safe-no-target-critic", "safe-momentum"),
)
"""Arms in the order of the table."""
STRESSED = ("ppo", "ppo-official", "ppo-matched", "safe-official", "safe", "safe-predictive")
"""Those that also ran under each stress preset."""
PRESETS = ("default", "stress-lr3", "stress-lr10", "stress-noise", "stress-shift")


def tables(path: Path) -> str:
    """Return the grid's tables as Markdown, of the runs that the file keeps."""
    runs = packed.read(path)
    blocks = []
    for preset in PRESETS:
        arms = ARMS if preset == packed.PLAIN else STRESSED
        found = {arm: [run for run in runs if (run.arm, run.preset) == (arm, preset)] for arm in arms}
        blocks.append(brief(preset, found, baseline=BASELINE))
    return render(blocks, "md")


def main(folder: str) -> None:
    """Write ``table.md`` beside the ``runs.csv`` in ``folder``."""
    path = Path(folder) / "runs.csv"
    path.with_name("table.md").write_text(tables(path), encoding="utf-8")
    print(path.with_name("table.md"))


if __name__ == "__main__":
    main(*sys.argv[1:])
