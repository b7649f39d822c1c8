"""How the screen is written to: what an error looks like, and characters that a terminal does not have."""

from __future__ import annotations

import io
import sys

from safebench.errors import SafebenchError


def tell(error: SafebenchError) -> None:
    """Write an error and its hint to stderr."""
    print(f"error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def encode_anything() -> None:
    """Let stdout and stderr write a question mark for what their encoding lacks, rather than raise."""
    for stream in (sys.stdout, sys.stderr):
        # A stream that someone put in their place need not be a file.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
