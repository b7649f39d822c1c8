"""Runs in this process, one after another; one fault stops no other run."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from safebench.config import run_folder
from safebench.errors import SafebenchError
from safebench.launch.outcome import Name, Result, interrupted, label, waiting
from safebench.launch.progress import View, say_end
from safebench.settings import Settings
from safebench.user_code import blamed

IfExists = Literal["resume", "skip", "error", "overwrite"]


def in_turn(runs: Sequence[Settings], root: Path, view: View, if_exists: IfExists, name: Name = label) -> list[Result]:
    """Do the runs; after an interruption no other begins."""
    results: list[Result] = []
    for settings in runs:
        if any(result.status == "interrupted" for result in results):
            results.append(waiting(settings, root))
            continue
        view.started(name(settings), settings.update.steps)
        results.append(one(settings, root, view, if_exists, name))
        say_end(view, results[-1], name)
    return results


def one(settings: Settings, root: Path, view: View, if_exists: IfExists, name: Name = label) -> Result:
    """Do one run in this process; whatever goes wrong becomes a result, so that the next run has its turn."""
    folder = run_folder(root, settings)
    forget_peaks()
    try:
        # Here, because it imports torch: naming wrong settings must not wait for that.
        from safebench.run import execute

        outcome = execute(
            settings,
            root,
            if_exists=if_exists,
            progress=lambda row, events: view.row(name(settings), row, events),
        )
    except KeyboardInterrupt:
        return interrupted(settings, root)
    except SafebenchError as error:
        status = "interrupted" if error.exit_code == 130 else "failed"
        return Result(settings, folder, status, {}, True, str(error), error.hint, error.exit_code)
    except Exception as error:  # the boundary between runs: shown in full, and the next run goes on
        if (blame := blamed(error)) is not None:
            return Result(settings, folder, "failed", {}, True, str(blame), blame.hint, blame.exit_code)
        return Result(settings, folder, "failed", {}, True, traceback.format_exc(), None, 1)
    code = 4 if outcome.status == "unstable" else 0
    return Result(settings, outcome.folder, outcome.status, outcome.summary, outcome.fresh, "", None, code)


def forget_peaks() -> None:
    """Let go of what an earlier run left, so that the next one reports its own peak of memory, not that one's."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # Linux: 5 sets the process's high-water mark to what it holds now. Elsewhere there is no such switch.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
