"""What is wrong with a stack of settings, said in the words of the person who wrote them."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safebench import catalog
from safebench.catalog import Group
from safebench.layers import Fault, Path_, Stack
from safebench.names import nearest
from safebench.settings import Settings

S = TypeVar("S", bound=BaseModel)

UNKNOWN = "unknown key"
"""How the message of a key that the schema lacks begins."""

_NAMED: tuple[tuple[Path_, Group], ...] = (
    (("arm",), "arms"),
    (("model", "name"), "models"),
    (("reward", "name"), "rewards"),
    (("reward", "judge"), "rewards"),
    (("prompts", "name"), "prompts"),
    (("update", "optimizer"), "optimizers"),
)


def validate(model: type[Settings], stack: Stack) -> tuple[Settings | None, list[Fault]]:
    """Return the settings, or None, and every fault: of the layers, of single keys and between keys."""
    found = [*stack.faults, *_truth_for_number(model, stack)]
    try:
        return model.model_validate(stack.values), found
    except ValidationError as error:
        details = error.errors()
    found += [_fault(detail, model, stack) for detail in details]
    # Checks between keys run only where the keys themselves are sound: mend those, and look again.
    if any(detail["loc"] for detail in details):
        found += _between_keys(model, stack, details)
    return None, found


def of_section(model: type[S], value: Any, path: Path_, stack: Stack) -> tuple[S | None, list[Fault]]:
    """Return ``value`` as the section ``model``, or None and every fault; ``path`` is where it stands."""
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, [_fault(detail, model, stack, path) for detail in error.errors()]


def of_names(stack: Stack) -> list[Fault]:
    """Return a fault for every name that the catalogue does not know."""
    found = []
    for path, group in _NAMED:
        found += _name_fault(stack, path, group, _at(stack.values, path))
    trackers = _at(stack.values, ("recording", "trackers"))
    for name in trackers if isinstance(trackers, (list, tuple)) else ():
        found += _name_fault(stack, ("recording", "trackers"), "trackers", name)
    return found


def _name_fault(stack: Stack, path: Path_, group: Group, name: Any) -> list[Fault]:
    if not isinstance(name, str):
        return []
    wrong = catalog.fault(group, name)
    return [Fault(".".join(path), wrong, stack.source(path), name)] if wrong else []


def _fault(detail: ErrorDetails, model: type[BaseModel], stack: Stack, above: Path_ = ()) -> Fault:
    below = tuple(str(part) for part in detail["loc"])
    path = (*above, *below)
    key, source, value = ".".join(path), stack.source(path), _shown(detail["input"])
    if detail["type"] == "extra_forbidden":
        near = nearest_key(below, model)
        return Fault(key, UNKNOWN + (f"; did you mean {near}?" if near else ""), source, value)
    if detail["type"] == "missing":
        return Fault(key, "is missing", source)
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return Fault(key, "is a section: give its keys", source, value)
    if detail["type"] == "value_error":
        return Fault(key, str(detail["msg"]).removeprefix("Value error, "), source)
    message = str(detail["msg"]).replace("Input should be", "must be").replace("Input should", "must")
    return Fault(key, f"{message[:1].lower()}{message[1:]}", source, value)


def _between_keys(model: type[Settings], stack: Stack, details: list[ErrorDetails]) -> list[Fault]:
    mended = deepcopy(stack.values)
    for detail in details:
        _remove(mended, tuple(str(part) for part in detail["loc"]))
    for key in ("experiment", "arm"):
        mended.setdefault(key, "unnamed")
    try:
        model.model_validate(mended)
    except ValidationError as error:
        return [_fault(detail, model, stack) for detail in error.errors() if not detail["loc"]]
    return []


def _truth_for_number(model: type[BaseModel], stack: Stack) -> list[Fault]:
    """Return a fault for each ``true`` or ``false`` where a number belongs (pydantic takes it for 1 or 0)."""
    found = []
    for path, annotation in fields(model):
        value = _at(stack.values, path)
        if isinstance(value, bool) and not _mentions(annotation, bool) and _mentions(annotation, int, float):
            found.append(Fault(".".join(path), "must be a number", stack.source(path), _shown(value)))
    return found


def fields(model: type[BaseModel], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield path and type of every key below ``model``, sections included."""
    for name, info in model.model_fields.items():
        yield (*path, name), info.annotation
        for part in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields(part, (*path, name))


def _mentions(annotation: Any, *types: type) -> bool:
    return annotation in types or any(_mentions(part, *types) for part in typing.get_args(annotation))


def nearest_key(path: Path_, model: type[BaseModel]) -> str | None:
    """Return the known key most like ``path``: a sibling, else one of that name elsewhere, else the likest path."""
    known = [".".join(field) for field, _ in fields(model)]
    section = path[:-1]
    siblings = [field[-1] for field, _ in fields(model) if field[:-1] == section]
    sibling = nearest(path[-1], siblings)
    if sibling:
        return ".".join((*section, sibling))
    namesakes = [key for key in known if key.split(".")[-1] == path[-1]]
    return namesakes[0] if namesakes else nearest(".".join(path), known)


def _at(values: Any, path: Path_) -> Any:
    for part in path:
        if not isinstance(values, dict):
            return None
        values = values.get(part)
    return values


def _remove(values: dict[str, Any], path: Path_) -> None:
    """Take away the value at ``path``, or the list that holds it."""
    for end in range(len(path), 0, -1):
        section = _at(values, path[: end - 1])
        if isinstance(section, dict):
            section.pop(path[end - 1], None)
            return


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)
