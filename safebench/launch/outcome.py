"""What became of a run that was asked for, and what that means for the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safebench.config import load, run_folder, settings_hash
from safebench.errors import BadResource
from safebench.recording import status
from safebench.recording.status import Status
from safebench.settings import Settings

Name = Callable[[Settings], str]
"""Returns what a run is called on the screen."""


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
    again = f" replicate {settings.compute.replicate}" if settings.compute.replicate else ""
    return f"{settings.experiment}{again} seed {settings.seed}"


def ended_before(settings: Settings, root: Path) -> Result | None:
    """Return the result of a run that had ended with these very settings, None where there is something to do."""
    folder = run_folder(root, settings)
    record = status.read(folder)
    if record is None or record.state not in (Status.FINISHED, Status.UNSTABLE):
        return None
    try:
        made = load(folder / "config.yaml")
    except BadResource:
        return None  # the run itself says what is wrong about that
    if settings_hash(made) != settings_hash(settings):
        return None
    code = record.state.exit_code or 0
    return Result(settings, folder, record.state.value, dict(record.summary), False, "", None, code)


def waiting(settings: Settings, root: Path) -> Result:
    """Return the result of a run that had no turn."""
    return Result(settings, run_folder(root, settings), "waiting", exit_code=130)


def interrupted(settings: Settings, root: Path) -> Result:
    """Return the result of a run that was stopped outside its steps."""
    hint = "Call the same command again to continue."
    return Result(settings, run_folder(root, settings), "interrupted", {}, True, "stopped by the user", hint, 130)


def exit_code(results: Sequence[Result]) -> int:
    """Return the command's exit code: a single run's own; of several, 0 unless one was stopped or failed."""
    if len(results) == 1:
        return results[0].exit_code
    codes = {result.exit_code for result in results}
    # An interruption first: the others may only look failed because of it. Then faults of ours, then the user's.
    return next((code for code in (130, 1, 3, 2) if code in codes), 0)
