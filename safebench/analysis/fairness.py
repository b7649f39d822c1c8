"""Check whether arms may be compared, and list the settings in which they differ; newer settings count as default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel

from safebench.analysis.runs import Run
from safebench.config.schema import Settings, Tuned


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as ``a.b`` keys; an empty or absent group keeps its value at its own key."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def filled(run: Run) -> dict[str, Any]:
    """Return a run's flat settings, with missing keys at the schema's defaults; a section that is off has no keys.

    The default of a new setting changes nothing, so an older run equals the run that it would be now. An imported run
    has only its known settings, and no defaults are filled in.
    """
    flat = flatten(run.settings)
    if "foreign" in run.manifest:
        return flat
    on = {key for key, value in flat.items() if value == {}}  # sections with all settings at their defaults
    there = on | {above for key in flat for above in _above(key)}
    known = defaults()

    def is_off(section: str) -> bool:
        return section not in there and flat.get(section, known.get(section, section)) is None

    missing = [key for key in known if key not in flat and key not in there and not any(map(is_off, _above(key)))]
    return {key: value for key, value in flat.items() if key not in on} | {key: known[key] for key in missing}


def _above(key: str) -> list[str]:
    """Return the sections that contain a key: ``a`` and ``a.b`` for ``a.b.c``."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


@lru_cache
def defaults() -> Mapping[str, Any]:
    """Return the schema's defaults, flat, with YAML's types; a section that is absent by default is None."""
    return dict(_defaults(Settings, ""))


def _defaults(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if field.annotation == Tuned | None:  # a record, which has no default
            continue
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_section(kind)]
        for kind in inner:
            yield from _defaults(kind, f"{prefix}{name}.")
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if not field.is_required() and not isinstance(default, BaseModel):
            yield f"{prefix}{name}", list(default) if isinstance(default, tuple) else default


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


NAMES = ("experiment", "description", "seed", "algorithm")
"""Settings that identify a run rather than describe its computation."""

RECORD = "tuned."
"""Prefix of the keys of a tuning record; the cost of the tuning is reported elsewhere."""

MATCHED: Mapping[str, tuple[str, ...]] = {
    "model": ("model.name", "model.random_weights", "model.dtype"),
    "data": ("prompts", "evaluation.prompts", "rollout.temperature"),
    "reward": (
        *("reward.name", "reward.label", "reward.judge", "reward.judge_label"),
        *("reward.noise", "reward.rescale_at", "reward.rescale_by"),
    ),
    "number of steps": ("update.steps",),
}
"""Settings (or groups of them) that must be equal, by the name of a difference in them."""

LOUD: Mapping[str, tuple[str, ...]] = {
    "token budget": ("rollout.batch", "rollout.reply_tokens", "update.steps"),
    "updates": ("update.epochs", "update.minibatches"),
    "learning rate": ("update.learning_rate", "update.critic_learning_rate", "update.schedule", "update.optimizer"),
    "normalisation": ("reward.normalise", "advantage.whiten", "advantage.whiten_rewards"),
}
"""Settings that can decide a comparison by themselves, by the name of a difference in them."""

IGNORED = ("seed", "trust_remote_code", "recording.", "compute.", "tuned.")
"""Key prefixes of settings that do not change what a run computes."""
REPLICATE = "compute.replicate"
"""The one setting below IGNORED that changes it, by rounding: runs and their replicates never form one arm."""

HASHED = {"model": "model", "reward": "reward", "judge": "judge", "prompts": "data"}
"""Hashes in the manifest that must be equal if both arms have them."""


@dataclass(frozen=True)
class Unequal:
    """A setting in which arms differ: its value per arm, and the name of what may decide by itself (else empty)."""

    key: str
    values: Mapping[str, Any]
    loud: str = ""


def differences(groups: Mapping[str, Sequence[Run]]) -> tuple[Unequal, ...]:
    """Return every setting in which the arms' first runs differ; those that may decide by themselves come first."""
    flat = {arm: filled(runs[0]) for arm, runs in groups.items() if runs}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    found = []
    for key in keys:
        values = {arm: settings.get(key) for arm, settings in flat.items()}
        if key not in NAMES and not key.startswith(RECORD) and not _same(values.values()):
            loud = next((name for name, members in LOUD.items() if key in members), "")
            found.append(Unequal(key, values, loud))
    return tuple(sorted(found, key=lambda unequal: not unequal.loud))


def mismatches(groups: Mapping[str, Sequence[Run]], seeds: Sequence[int]) -> list[str]:
    """Return why the arms cannot be compared: unequal settings or files, or missing, duplicate or unfinished runs."""
    reasons = [reason for arm, runs in groups.items() for reason in _within(arm, runs, seeds)]
    flat = {arm: filled(runs[0]) for arm, runs in groups.items() if runs}
    for name, members in MATCHED.items():
        keys = [key for key in dict.fromkeys(k for s in flat.values() for k in s) if belongs(key, members)]
        for key in keys:
            values = {arm: settings.get(key) for arm, settings in flat.items()}
            if not _same(values.values()):
                reasons.append(f"another {name}: {key} is {_listed(values)}")
    return reasons + _other_files([run for runs in groups.values() for run in runs], seeds)


def _other_files(runs: Sequence[Run], seeds: Sequence[int]) -> list[str]:
    """Compare hashes seed by seed, because random weights are a different model for every seed."""
    reasons = []
    for key, name in HASHED.items():
        for seed in seeds:
            hashes = [run.manifest.get("hashes", {}).get(key) for run in runs if run.seed == seed]
            if not _same(found for found in hashes if found is not None):
                reasons.append(f"another {name}: the hash of its files ({key}) differs between the arms in seed {seed}")
                break
    return reasons


def _within(arm: str, runs: Sequence[Run], seeds: Sequence[int]) -> list[str]:
    reasons = []
    held = [run.seed for run in runs]
    if missing := [seed for seed in seeds if seed not in held]:
        reasons.append(f"{arm} has no run of {_seeds(missing)}")
    if doubled := sorted({seed for seed in held if held.count(seed) > 1}):
        folders = ", ".join(sorted({run.variant for run in runs}))
        reasons.append(f"{arm} has several runs of {_seeds(doubled)} ({folders})")
    for status in sorted({run.status for run in runs if not run.complete}):
        found = sorted({run.seed for run in runs if run.status == status})
        reasons.append(f"{arm} is {status} in {_seeds(found)}")
    for key, name in HASHED.items():
        files = {str(run.manifest.get("hashes", {}).get(key) or "") for run in runs} - {""}
        if len({text for text in files if not text.startswith("random weights")}) > 1:
            reasons.append(f"another {name} in some seeds of {arm}: the hash of its files ({key}) differs")
    settings = [filled(run) for run in runs]
    keys = dict.fromkeys(key for flat in settings for key in flat)
    unequal = [key for key in keys if not ignored(key) and not _same(flat.get(key) for flat in settings)]
    if unequal:
        reasons.append(f"the runs of {arm} differ among themselves in {', '.join(unequal)}")
    return reasons


def ignored(key: str) -> bool:
    """Return whether a setting does not change what a run computes."""
    return key.startswith(IGNORED) and key != REPLICATE


def belongs(key: str, members: Iterable[str]) -> bool:
    """Return whether a setting is one of ``members`` or lies in one of these groups."""
    return any(key == member or key.startswith(f"{member}.") for member in members)


def _same(values: Iterable[Any]) -> bool:
    first, *others = list(values) or [None]
    return all(type(other) is type(first) and other == first for other in others)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} in {arm}" for arm, value in values.items())


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
