"""The knobs of an experiment: which of its settings tuning may change, and in which range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safebench import config, faults
from safebench.errors import UsageError
from safebench.layers import Fault, Path_, Stack
from safebench.settings import Settings
from safebench.settings.tuning import Knob

EXAMPLE = "tuning: {knobs: {update: {learning_rate: {low: 3e-4, high: 1e-2, scale: log}}}}"
KNOBS: Path_ = ("tuning", "knobs")
_RANGE = frozenset(Knob.model_fields)


@dataclass(frozen=True)
class Tunable:
    """An experiment as published, and its knobs by key, ``a.b``, in the order of its files."""

    settings: Settings
    knobs: Mapping[str, Knob]

    @property
    def published(self) -> dict[str, Any]:
        """The published value of each knob; None where the setting is off."""
        return {key: value_of(self.settings, key) for key in self.knobs}


def tunable(
    experiment: str,
    *,
    preset: str | None = None,
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
) -> Tunable:
    """Return ``experiment``, resolved as a run of it is, with its knobs.

    Raises ``UsageError`` naming every fault: no knobs, a key that no setting has, a range that is none, a published
    value outside of its range, and a knob that the command line sets.
    """
    layers = config.lay(experiment, preset, files, overrides)
    settings = config.validated(layers.stack, experiment)
    if settings.tuned is not None:
        raise UsageError(
            f"{experiment} is tuned already, from {settings.tuned.experiment}",
            f"Tune {settings.tuned.experiment}: the cost of the first tuning would be lost otherwise.",
        )
    fixed = frozenset({config.COMMAND_LINE, *map(str, files)})
    knobs, found = _read(layers, settings, fixed)
    if found:
        raise config.refusal(experiment, found)
    if not knobs:
        raise UsageError(
            f"{experiment} names no knobs: there is nothing to tune", f"Write them in its file: {EXAMPLE}."
        )
    return Tunable(settings, knobs)


def value_of(settings: Settings, key: str) -> Any:
    """Return the value of the setting at ``key``, ``a.b``; raise ``KeyError`` where a section of it is off."""
    value: Any = settings
    for name in key.split("."):
        if value is None:
            raise KeyError(key)
        value = getattr(value, name)
    return value


def _read(layers: config.Layers, settings: Settings, fixed: frozenset[str]) -> tuple[dict[str, Knob], list[Fault]]:
    section, stack, found = layers.tuning, layers.stack, list[Fault]()
    if section is None:
        return {}, found
    if not isinstance(section, dict):
        return {}, [Fault("tuning", f"is a section: write {EXAMPLE}", stack.source(("tuning",)))]
    for key in section:
        if key != "knobs":
            found.append(Fault(f"tuning.{key}", f"{faults.UNKNOWN}; there is knobs", stack.source(("tuning", key))))
    knobs: dict[str, Knob] = {}
    for path, value in _leaves(section.get("knobs"), ()):
        wrong = _key_fault(path, value, settings, stack)
        if wrong is not None:
            found.append(wrong)
            continue
        knob, of_range = faults.of_section(Knob, value, (*KNOBS, *path), stack)
        found += of_range
        if knob is not None:
            key = ".".join(path)
            knobs[key] = knob
            found += _value_faults(key, knob, settings, stack, fixed)
    return knobs, found


def _leaves(value: Any, path: Path_) -> Iterator[tuple[Path_, Any]]:
    """Yield every knob below ``value``: a mapping with keys of a range, or what is none. Null takes a knob away."""
    if value is None:
        return
    if isinstance(value, dict) and not _RANGE & value.keys():
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _key_fault(path: Path_, value: Any, settings: Settings, stack: Stack) -> Fault | None:
    """Say what is wrong with a knob's key: unknown, not of the run, in a section that is off, or no number."""
    where, source = ".".join((*KNOBS, *path)), stack.source((*KNOBS, *path))
    if any("." in part for part in path):
        return Fault(where, f"write the key as sections: {EXAMPLE}", source)
    if not isinstance(value, dict):
        return Fault(where, f"is a section: write {EXAMPLE}", source)
    key = ".".join(path)
    if path not in dict(faults.fields(Settings)):
        near = faults.nearest_key(path, Settings)
        return Fault(where, faults.UNKNOWN + (f"; did you mean {near}?" if near else ""), source)
    if path[0] in config.NOT_OF_THE_RUN:
        return Fault(where, "changes nothing that a run computes", source)
    try:
        published = value_of(settings, key)
    except KeyError:
        return Fault(where, "lies in a section that is off (null) in this experiment; null takes the knob away", source)
    if published is not None and (isinstance(published, bool) or not isinstance(published, int | float)):
        return Fault(where, f"the setting {key} is no number, but {published!r}", source)
    return None


def _value_faults(key: str, knob: Knob, settings: Settings, stack: Stack, fixed: frozenset[str]) -> list[Fault]:
    """Say where the published value cannot be a point of the knob's range."""
    published, path = value_of(settings, key), tuple(key.split("."))
    source = stack.source(path)
    if source in fixed:
        return [Fault(key, "is a knob of this experiment: tuning would not change it", source, str(published))]
    if published is not None and not knob.low <= published <= knob.high:
        end = "low" if published < knob.low else "high"
        message = f"lies outside of its knob's range, {knob.low:g} to {knob.high:g}; --set tuning.knobs.{key}.{end}=…"
        return [Fault(key, message, source, str(published))]
    return []
