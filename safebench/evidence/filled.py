"""A run's settings with what its time did not know: a key that is newer than the run has the default it had then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel

from safebench.evidence.runs import Run
from safebench.settings import Settings
from safebench.settings.tuning import Tuned


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as ``a.b`` keys; an empty or absent group is None at its own key."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def filled(run: Run) -> dict[str, Any]:
    """Return a run's flat settings, missing keys at the schema's defaults; a section that is off has no keys.

    Settings are added such that their default changes nothing; a run of before thus is the run that it would be now. Of
    an imported run only what is known is there, and nothing is filled in.
    """
    flat = flatten(run.settings)
    if "foreign" in run.manifest:
        return flat
    on = {key for key, value in flat.items() if value == {}}  # sections wholly at their defaults
    there = on | {above for key in flat for above in _above(key)}
    known = defaults()

    def is_off(section: str) -> bool:
        return section not in there and flat.get(section, known.get(section, section)) is None

    missing = [key for key in known if key not in flat and key not in there and not any(map(is_off, _above(key)))]
    return {key: value for key, value in flat.items() if key not in on} | {key: known[key] for key in missing}


def _above(key: str) -> list[str]:
    """Return the sections that a key lies in: of ``a.b.c``, ``a`` and ``a.b``."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


@lru_cache
def defaults() -> Mapping[str, Any]:
    """Return the schema's defaults, flat, as YAML has them; a section that is absent by default is None."""
    return dict(_defaults(Settings, ""))


def _defaults(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if field.annotation == Tuned | None:  # a record, which a run has or has not
            continue
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_section(kind)]
        for kind in inner:
            yield from _defaults(kind, f"{prefix}{name}.")
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if not field.is_required() and not isinstance(default, BaseModel):
            yield f"{prefix}{name}", list(default) if isinstance(default, tuple) else default


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
