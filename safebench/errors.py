"""Errors for the user, each with exit code and next step; the nearest known name; missing optional packages."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence


def nearest(name: str, names: Sequence[str]) -> str | None:
    """Return the name most similar to ``name``, or None if no name is similar."""
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    if found:
        return lower[found[0]]
    inside = [other for other in names if len(name) > 1 and name.lower() in other.lower()]
    return inside[0] if inside else None


def unknown(name: str, names: Sequence[str]) -> str:
    """Return the message that ``name`` is none of ``names``, with the nearest of them, or with all."""
    near = nearest(name, names)
    return f"unknown; did you mean {near}?" if near else f"unknown; there are {', '.join(names)}"


class SafebenchError(Exception):
    """Base class of this package's errors. ``hint`` is the next step, in one sentence."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SafebenchError):
    """The command or the configuration is wrong; the message names every fault."""

    exit_code = 2


class MissingResource(SafebenchError):
    """A model, reward, data set, device or folder is not available here."""

    exit_code = 3


class BadResource(MissingResource):
    """A resource is there but cannot be used: no weights, wrong number of rewards, too few prompts."""


class Instability(SafebenchError):
    """A run ended in a non-finite number. It is a result, not a fault."""

    exit_code = 4


class ComparisonRefused(SafebenchError):
    """The runs asked for cannot be compared fairly."""

    exit_code = 5


class Interrupted(SafebenchError):
    """The user stopped the run; it resumes from its last checkpoint."""

    exit_code = 130


_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")
"""Texts of torch's out-of-memory errors without a type of their own: its CPU allocator raises ``RuntimeError``."""


def out_of_memory(error: BaseException, what: str = "this does not fit into memory") -> MissingResource | None:
    """Return the error to report if ``error`` means that memory ran out, else None."""
    message = " ".join(str(error).split())
    torch_says = isinstance(error, RuntimeError) and any(words in message.lower() for words in _MEMORY)
    if not (isinstance(error, MemoryError) or torch_says):
        return None
    return MissingResource(
        f"{what}: {message[:200] or type(error).__name__}",
        "Lower rollout.chunk and update.microbatch, or set model.gradient_checkpointing=true (each with --set).",
    )


def tell(error: SafebenchError) -> None:
    """Write an error and its hint to stderr."""
    print(f"error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


LAST_WITH_PPO = "1.12.0"
"""The last release of TRL with a PPO trainer; 1.13.0 removed it."""

INSTALL = f'Install it with: pip install "trl=={LAST_WITH_PPO}"'


def without_trl(what: str) -> MissingResource:
    """Return the error for ``what``, which needs TRL, if TRL is not installed."""
    return MissingResource(f"{what} needs TRL, which is not installed", INSTALL)


def without_ppo(what: str, version: str) -> MissingResource:
    """Return the error for ``what``, which needs TRL's PPO, if TRL is of a ``version`` without PPO."""
    return MissingResource(
        f"{what} needs TRL's PPO trainer, and TRL {version} has none: {LAST_WITH_PPO} is the last release that has it",
        INSTALL,
    )


def without_trainer(what: str, name: str, version: str) -> MissingResource:
    """Return the error for ``what``, if the installed TRL lacks the trainer that it needs."""
    return MissingResource(
        f"{what} needs TRL's {name}, and TRL {version} has none: {LAST_WITH_PPO} is known to have it", INSTALL
    )


def without_optuna(what: str) -> MissingResource:
    """Return the error for ``what``, which needs Optuna, if Optuna is not installed."""
    return MissingResource(
        f"{what} needs Optuna, which is not installed",
        'Install it with: pip install "optuna>=4" (the extra tune), '
        f"or leave {what} out: Halton's points need nothing more.",
    )
