"""Many runs: in turn in this process, or several at once in worker processes; one fault stops no other run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safebench.launch.outcome import Result, exit_code, label
from safebench.launch.pool import Pool
from safebench.launch.progress import View, open_view
from safebench.launch.turns import IfExists, in_turn
from safebench.settings import Settings

__all__ = ["IfExists", "Result", "View", "exit_code", "label", "launch", "open_view"]


def launch(
    runs: Sequence[Settings],
    root: Path,
    view: View,
    *,
    jobs: int = 1,
    if_exists: IfExists = "resume",
) -> list[Result]:
    """Do all runs, ``jobs`` at a time, and return what became of each, in their order.

    After Ctrl-C the runs that go on save their state and stop, and no other begins: their results say
    ``interrupted`` and ``waiting``.
    """
    with view:
        if jobs > 1 and len(runs) > 1:
            return Pool(root, if_exists, view).run(runs, min(jobs, len(runs)))
        return in_turn(runs, root, view, if_exists)
