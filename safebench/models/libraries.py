"""Suppress the output of the libraries that load and run models and data sets, and turn their errors into our own."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from transformers.utils import logging as transformers_logging

from safebench.errors import BadResource, MissingResource, SafebenchError, UsageError, out_of_memory
from safebench.registry import Entry
from safebench.user_code import named

TRUST = "--trust-remote-code"

_LONGEST = 300
"""Maximum number of characters of a library's message that are shown."""


@contextlib.contextmanager
def loading(what: str, location: str, hint: str = "") -> Iterator[None]:
    """Turn a loading error into one that names the resource, its location and a remedy; there is never a fallback.

    Any exception of a library becomes a ``MissingResource``, or a ``BadResource`` if ``location`` is a directory. The
    remedy of the latter is ``hint``, if there is one.
    """
    try:
        yield
    except SafebenchError:
        raise
    except Exception as fault:  # libraries may raise anything on a user's files
        raise _named(fault, what, location, hint) from fault


def _named(fault: Exception, what: str, location: str, hint: str) -> SafebenchError:
    if (memory := out_of_memory(fault, f"{what} does not fit into memory")) is not None:
        return memory
    message = " ".join(str(fault).split())
    if "trust_remote_code=True" in message:
        return needs_code(what, location)
    said = (message if isinstance(fault, (OSError, ValueError)) else named(fault))[:_LONGEST]
    if isinstance(fault, ImportError):
        package = f"{fault.name.partition('.')[0]}, " if fault.name else ""
        return MissingResource(
            f"{what}: {location} needs a package that does not import: {said}",
            f"Install {package}the package that the message names.",
        )
    if Path(location).is_dir():
        return BadResource(
            f"{what}: the directory {location} cannot be loaded: {said}",
            hint or "It needs config.json, model.safetensors and the tokenizer's files.",
        )
    return MissingResource(
        f"{what}: tried the local cache and the hub for {location!r}, without success: {said}",
        f"Download it where there is a network and name the directory, such as ./models/{location.split('/')[-1]}.",
    )


@contextlib.contextmanager
def naming(what: str, hint: str, error: type[SafebenchError] = BadResource) -> Iterator[None]:
    """Turn any exception into an ``error`` that names ``what``; a ``SafebenchError`` passes unchanged."""
    try:
        yield
    except SafebenchError:
        raise
    except Exception as fault:  # a library may raise anything on a user's object
        memory = out_of_memory(fault, f"{what}: this does not fit into memory")
        raise memory or error(f"{what}: {named(fault)[:_LONGEST]}", hint) from fault


def passing(what: str) -> contextlib.AbstractContextManager[None]:
    """Return a context that names the model whose forward pass fails."""
    return naming(
        f"{what} fails in its forward pass",
        "Its config, weights and tokenizer must belong together: load them with transformers alone to see where.",
    )


def trusted(entry: Entry, trust: Collection[str]) -> bool:
    """Return whether a model's or reward's own code may run, which requires its name or hub id in ``trust``.

    Raises ``UsageError`` if the code may not run and the catalogue says that loading requires it.
    """
    if entry.name in trust or entry.location in trust:
        return True
    if entry.remote_code:
        raise needs_code(entry.name, entry.name)
    return False


def needs_code(what: str, name: str) -> UsageError:
    """Return the error for a model or reward that needs its own code."""
    return UsageError(
        f"{what} loads only with Python code of its own, which is not run unless asked for",
        f"Read that code, then add {TRUST} {name} to the command.",
    )


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress the libraries' own progress bars and those warnings that the user did not cause."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    loads = transformers_logging.get_logger("transformers.modeling_utils")
    # Each context has its own filter: contexts nest, and the inner one must not remove the outer one's filter.
    quiet = functools.partial(_no_report)
    loads.addFilter(quiet)
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # peft sets these itself: the weight layout of GPT-2's layers, and ranks of experts that are not adapted.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*(rank|alpha)_pattern keys did not match", category=RuntimeWarning)
        try:
            yield
        finally:
            loads.removeFilter(quiet)
            if bars:
                transformers_logging.enable_progress_bar()


def _no_report(record: logging.LogRecord) -> bool:
    """Drop the table of missing and unread weights: these are refused by name, or come from an adapter."""
    return "LOAD REPORT" not in record.getMessage()
