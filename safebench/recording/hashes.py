"""What a run's model, rewards and prompts were, by the content of their files."""

from __future__ import annotations

from pathlib import Path

from safebench import catalog, user_code
from safebench.recording import manifest
from safebench.settings import Settings


def of_settings(settings: Settings) -> dict[str, str]:
    """Return the sha256 of model, reward, judge and prompts, wherever they lie on this machine."""
    named = {
        "model": None if settings.model.random_weights else catalog.model_source(settings.model.name),
        "reward": catalog.reward_source(settings.reward.name),
        "judge": catalog.reward_source(settings.reward.judge) if settings.reward.judge else None,
        "prompts": catalog.find("prompts", settings.prompts.name),
    }
    hashes = {name: of_entry(entry) for name, entry in named.items() if entry is not None}
    if settings.model.random_weights:
        hashes["model"] = f"random weights of {settings.model.name}, seed {settings.seed}"
    return hashes


def of_entry(entry: catalog.Entry) -> str:
    """Return the sha256 of the entry's files, or its hub id where no copy of them lies here.

    Weights in another package are checked against their sha256 whenever they are loaded.
    """
    if entry.kind == "function":
        source = user_code.source_of(entry.load())
        return manifest.hash_folder(Path(source)) if source else entry.location
    if entry.packaged is not None:
        return entry.packaged.sha256
    if entry.kind == "hub":
        copy = catalog.local_copy(entry.location, "dataset" if entry in catalog.PROMPTS else "model")
        return manifest.hash_folder(copy) if copy else entry.location
    return manifest.hash_folder(Path(entry.location))
