"""The tree of errors a user can meet; each knows its exit code and the next step."""

from __future__ import annotations

import sys


class SafebenchError(Exception):
    """Base of all errors of ours. ``hint`` is the next step, one sentence."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SafebenchError):
    """The command or the configuration is wrong; the message names every fault."""

    exit_code = 2


class MissingResource(SafebenchError):
    """A model, reward, data set, device or folder is not to be had here."""

    exit_code = 3


class BadResource(MissingResource):
    """A resource is there but cannot serve: no weights, wrong number of rewards, too few prompts."""


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
"""How torch says that memory ran out, where it has no type for it: its CPU allocator raises a ``RuntimeError``."""


def out_of_memory(error: BaseException, what: str = "this does not fit into memory") -> MissingResource | None:
    """Return what to say where ``error`` means that memory ran out, else None."""
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
