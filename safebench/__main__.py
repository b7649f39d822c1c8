"""Runs the command ``safebench`` as ``python -m safebench``."""

from __future__ import annotations

import sys

from safebench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
