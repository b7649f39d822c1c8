"""What an error looks like on the screen: what is wrong, and the next step."""

from __future__ import annotations

import sys

from safebench.errors import SafebenchError


def tell(error: SafebenchError, about: str = "") -> None:
    """Write an error and its hint to stderr; ``about`` names the run it belongs to."""
    complain(str(error), error.hint, about)


def complain(message: str, hint: str | None, about: str = "") -> None:
    """Write what is wrong and the next step to stderr."""
    print(f"error: {about + ': ' if about else ''}{message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
