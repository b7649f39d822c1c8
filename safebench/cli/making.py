"""Make the runs that are asked for, or say what they would need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from safebench.cli.asked import Asked, parse_seeds
from safebench.cli.dry import estimated
from safebench.cli.options import IfExists
from safebench.cli.outcome import describe
from safebench.runner.pool import launch
from safebench.runner.progress import exit_code, is_main, label, open_view
from safebench.settings import Settings

COMPARED_SEEDS = "0-4"
"""Seeds of a comparison that makes its runs."""


def make(runs: Sequence[Settings], root: Path, jobs: int, if_exists: IfExists, *, summaries: bool = True) -> int:
    """Do the runs, say how each ended (with ``summaries`` on stdout), and return the exit code."""
    outcomes = launch(runs, root, open_view(len(runs)), jobs=jobs, if_exists=if_exists.value)
    for outcome in outcomes:
        if summaries and is_main() and outcome.status in ("finished", "unstable"):
            print(describe(outcome))
    failed = [label(outcome.settings) for outcome in outcomes if outcome.status == "failed"]
    if failed and len(runs) > 1 and is_main():
        print(f"failed: {len(failed)} of {len(runs)} runs: {', '.join(failed)}", file=sys.stderr)
    left = sum(outcome.exit_code == 130 for outcome in outcomes)
    if left and is_main():
        print(f"stopped: {left} of {len(runs)} runs unfinished; the same command continues them", file=sys.stderr)
    return exit_code(outcomes)


def dry_run(asked: Asked, root: Path, seeds: str = "0") -> int:
    """Print each experiment's settings as YAML, what a run of it needs in comments."""
    chosen = parse_seeds(asked.seeds or seeds)
    for number, settings in enumerate(asked.settings()):
        print("---" if number else "# Nothing is run. YAML, with what a run needs in comments.")
        print(estimated(settings.model_copy(update={"seed": chosen[0]}), root, chosen))
    return 0
