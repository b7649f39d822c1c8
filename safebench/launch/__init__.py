"""Many runs: in turn in this process, or several at once in worker processes; one fault stops no other run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from safebench.errors import UsageError
from safebench.launch.outcome import Name, Result, ended_before, exit_code, label
from safebench.launch.pool import Pool
from safebench.launch.progress import View, is_main, open_view, say_end
from safebench.launch.turns import IfExists, in_turn
from safebench.settings import Settings

__all__ = ["IfExists", "Name", "Result", "View", "exit_code", "is_main", "label", "launch", "open_view"]


def launch(
    runs: Sequence[Settings],
    root: Path,
    view: View,
    *,
    jobs: int = 1,
    if_exists: IfExists = "resume",
    name: Name = label,
) -> list[Result]:
    """Do all runs, ``jobs`` at a time, and return what became of each, in their order.

    After Ctrl-C the runs that go on save their state and stop, and no other begins: their results say
    ``interrupted`` and ``waiting``. ``name`` says what each run is called on the screen: no two may be called the same.
    """
    if jobs > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--jobs and several processes per run do not go together", "Drop --jobs, or accelerate launch."
        )
    keep = if_exists in ("resume", "skip")
    # Looked up here, so that a command whose runs have all ended need not load torch.
    before = [ended_before(settings, root) if keep else None for settings in runs]
    todo = [settings for settings, done in zip(runs, before, strict=True) if done is None]
    with view:
        for done in filter(None, before):
            say_end(view, done, name)
        if jobs > 1 and len(todo) > 1:
            made = iter(Pool(root, if_exists, view, name).run(todo, min(jobs, len(todo))))
        else:
            made = iter(in_turn(todo, root, view, if_exists, name))
    return [next(made) if done is None else done for done in before]
