"""Many runs: in turn in this process, or several at once in worker processes; one fault stops no other run."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safebench.config import run_folder
from safebench.errors import SafebenchError
from safebench.progress import View
from safebench.settings import Settings

IfExists = Literal["resume", "skip", "error", "overwrite"]


@dataclass(frozen=True)
class Result:
    """What became of one run that was asked for."""

    settings: Settings
    folder: Path
    status: str
    """finished, unstable, interrupted, failed, or ``waiting``: an interruption came before its turn."""
    summary: dict[str, Any] = field(default_factory=dict)
    fresh: bool = True
    """False when the run had ended before and nothing was done."""
    message: str = ""
    hint: str | None = None
    exit_code: int = 0


def label(settings: Settings) -> str:
    """Return the few words that name a run on the screen."""
    return f"{settings.experiment} seed {settings.seed}"


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
            from safebench.pool import Pool

            return Pool(root, if_exists, view).run(runs, min(jobs, len(runs)))
        return _in_turn(runs, root, view, if_exists)


def _in_turn(runs: Sequence[Settings], root: Path, view: View, if_exists: IfExists) -> list[Result]:
    results: list[Result] = []
    for settings in runs:
        if any(result.status == "interrupted" for result in results):
            results.append(waiting(settings, root))
            continue
        view.started(label(settings), settings.update.steps)
        results.append(one(settings, root, view, if_exists))
        view.ended(label(settings), ending(results[-1]))
    return results


def one(settings: Settings, root: Path, view: View, if_exists: IfExists) -> Result:
    """Do one run in this process; whatever goes wrong becomes a result, so that the next run has its turn."""
    folder = run_folder(root, settings)
    try:
        # Here, because it imports torch: naming wrong settings must not wait for that.
        from safebench.run import execute

        outcome = execute(
            settings,
            root,
            if_exists=if_exists,
            progress=lambda row, events: view.row(label(settings), row, events),
        )
    except KeyboardInterrupt:
        return interrupted(settings, root)
    except SafebenchError as error:
        status = "interrupted" if error.exit_code == 130 else "failed"
        return Result(settings, folder, status, {}, True, str(error), error.hint, error.exit_code)
    except Exception:  # the boundary between runs: shown in full, and the next run goes on
        return Result(settings, folder, "failed", {}, True, traceback.format_exc(), None, 1)
    code = 4 if outcome.status == "unstable" else 0
    return Result(settings, outcome.folder, outcome.status, outcome.summary, outcome.fresh, "", None, code)


def waiting(settings: Settings, root: Path) -> Result:
    """Return the result of a run that had no turn."""
    return Result(settings, run_folder(root, settings), "waiting", exit_code=130)


def interrupted(settings: Settings, root: Path) -> Result:
    """Return the result of a run that was stopped outside its steps."""
    hint = "Call the same command again to continue."
    return Result(settings, run_folder(root, settings), "interrupted", {}, True, "stopped by the user", hint, 130)


def ending(result: Result) -> str:
    """Return how a run ended, in a few words."""
    if result.status == "failed":
        return f"failed: {result.message.strip().splitlines()[-1]}"
    if not result.fresh:
        return f"{result.status} before; kept"
    return result.status


def exit_code(results: Sequence[Result]) -> int:
    """Return the command's exit code: a single run's own; of several, 0 unless one was stopped or failed."""
    if len(results) == 1:
        return results[0].exit_code
    codes = {result.exit_code for result in results} - {0, 4}
    # An interruption first: the others may only look failed because of it. Then faults of ours, then the user's.
    return next((code for code in (130, 1, 3, 2) if code in codes), 0)
