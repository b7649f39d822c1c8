"""Turn the many ways in which loading a model or data set fails into one clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

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
