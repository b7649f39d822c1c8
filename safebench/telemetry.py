"""Turns off the telemetry of libraries; to be called before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

QUIET: dict[str, str] = {
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
}
"""Environment variables and the values that stop libraries from sending usage counts, crash reports, a
token with every download, the console, the repository's address and code."""


def quiet(environment: MutableMapping[str, str] | None = None) -> None:
    """Set the variables of ``QUIET`` that ``environment`` (this process's by default) does not have yet.

    Values that the user has set are kept, because they are deliberate. Libraries read these variables when they are
    imported, and child processes inherit them, so this must be called first.
    """
    target = os.environ if environment is None else environment
    for name, value in QUIET.items():
        target.setdefault(name, value)
