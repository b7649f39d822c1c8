"""What an error looks like on the screen: what is wrong, and the next step."""

from __future__ import annotations

import sys

from safebench.errors import SafebenchError


def tell(error: SafebenchError) -> None:
    """Write an error and its hint to stderr."""
    print(f"error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
