"""The tree of errors a user can meet; each knows its exit code and the next step."""

from __future__ import annotations


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
