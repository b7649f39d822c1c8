"""Load models and data sets without the libraries' noise, and turn the many ways to fail into one clear error."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging as transformers_logging

from safebench.errors import BadResource, MissingResource


@contextlib.contextmanager
def loading(what: str, location: str) -> Iterator[None]:
    """Name what could not be loaded from where, and the way out; never fall back to something else."""
    try:
        yield
    except (OSError, ValueError) as fault:
        reason = " ".join(str(fault).split())[:300]
        if Path(location).is_dir():
            raise BadResource(
                f"{what}: the directory {location} cannot be loaded: {reason}",
                "It needs config.json, model.safetensors and the tokenizer's files.",
            ) from fault
        raise MissingResource(
            f"{what}: tried the local cache and the hub for {location!r}, without success: {reason}",
            f"Download it where there is a network and name the directory, such as ./models/{location.split('/')[-1]}.",
        ) from fault


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own progress bars and the notices that are not about the user's doing off the screen."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            yield
        finally:
            if bars:
                transformers_logging.enable_progress_bar()
