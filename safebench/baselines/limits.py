"""What another library's trainer cannot do of what the settings may ask: refused, never ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safebench import config
from safebench.errors import UsageError
from safebench.settings import Settings
from safebench.trainers.processes import Processes


def refuse(settings: Settings, only: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` unless each key of ``only`` has the value there; a section's name stands for its keys.

    All faults come at once, and the hint has the flags that mend them.
    """
    dump = settings.model_dump()
    for key, value in only.items():
        *path, last = key.split(".")
        section = dump
        for part in path:
            section = section[part]
        section[last] = value
    wrong = config.changes(Settings.model_validate(dump), settings)
    if not wrong:
        return
    faults = "; ".join(f"{key} is {json.dumps(has)}, not {json.dumps(can)}" for key, has, can in wrong)
    flags = " ".join(f"--set {key}={json.dumps(can)}" for key, _, can in wrong)
    raise UsageError(f"TRL's trainer behind {settings.arm} cannot do what is asked: {faults}", f"Use {flags}.")


def refuse_places(settings: Settings, processes: Processes) -> None:
    """Refuse several processes, and devices other than the first, which TRL's trainers would take all the same."""
    if processes.count > 1:
        raise UsageError(
            f"{settings.arm} runs in one process, and there are {processes.count}", "Start it without a launcher."
        )
    if processes.device.index not in (None, 0):
        raise UsageError(
            f"{settings.arm} runs on the first device, and compute.device is {settings.compute.device}",
            "Use --set compute.device=cuda, and choose the device with CUDA_VISIBLE_DEVICES.",
        )
