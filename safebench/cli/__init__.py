"""The command line: parse, call, print. Importing it imports no torch."""

from __future__ import annotations

from safebench.cli.app import app, main

__all__ = ["app", "main"]
