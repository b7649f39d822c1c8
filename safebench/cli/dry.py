"""``--dry-run``: the settings as YAML, and what the run would need as comments."""

from __future__ import annotations

import shutil
from pathlib import Path

from safebench import config
from safebench.doctor import device_kind, free_memory
from safebench.estimate import Estimate, estimate, readable
from safebench.settings import Settings


def estimated(settings: Settings, root: Path, seeds: list[int]) -> str:
    """Return the settings of one experiment as YAML, with updates, tokens, memory and disk in comments."""
    kind = device_kind(settings.compute.device)
    needs = estimate(settings, kind)
    folder = config.run_folder(root, settings)
    runs = f"{folder.parent}/seed-…, {len(seeds)} seeds from {seeds[0]}" if len(seeds) > 1 else str(folder)
    lines = [
        f"run: {runs}",
        f"hash: {config.settings_hash(settings)}",
        f"steps: {settings.update.steps}, optimizer updates: {needs.updates}",
        f"reply tokens: at most {needs.tokens}",
        *_memory(needs, kind),
        *_disk(needs, root),
        *needs.notes,
    ]
    return "\n".join(f"# {line}" for line in lines) + "\n" + config.dump(settings).rstrip()


def _memory(needs: Estimate, kind: str) -> list[str]:
    if needs.total_memory is None:
        return ["memory: not known"]
    free = free_memory(kind)
    here = f", {readable(free)} free here" if free is not None else ""
    parts = ", ".join(f"{name} {readable(size)}" for name, size in needs.memory.items())
    counts = f"{needs.parameters} parameters, {needs.trainable} trained"
    return [f"memory on {kind}: about {readable(needs.total_memory)}{here} ({parts})", f"model: {counts}"]


def _disk(needs: Estimate, root: Path) -> list[str]:
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    free = readable(shutil.disk_usage(there).free)
    parts = ", ".join(f"{name} {readable(size)}" for name, size in needs.disk.items())
    return [f"disk: about {readable(needs.total_disk)} per run, {free} free here ({parts})"]
