"""The catalogue on the screen: experiments, arms, models, rewards; one line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from safebench import catalog, config
from safebench.architectures import encoder_parameters, parameters
from safebench.estimate import dimensions, encoder_layers


def experiments() -> None:
    """Print the named experiments and presets."""
    print(columns([("EXPERIMENT", ""), *config.experiments()]))
    print()
    print(columns([("PRESET", ""), *config.presets()]))


def arms() -> None:
    """Print the arms."""
    print(columns([("ARM", ""), *((entry.name, entry.description) for entry in catalog.entries("arms"))]))


def things(group: Literal["models", "rewards"]) -> None:
    """Print models or rewards: name, size, licence, where from, what it is."""
    title = group.removesuffix("s").upper()
    print(columns([(title, "SIZE", "LICENCE", "FROM", ""), *(_row(group, entry) for entry in catalog.entries(group))]))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as columns, each as wide as its widest cell, the last one ragged."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def size(count: int | None) -> str:
    """Return a number of parameters for people: ``2.0M``, ``3.1B``."""
    if count is None:
        return "?"
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _row(group: str, entry: catalog.Entry) -> tuple[str, str, str, str, str]:
    known = dimensions(entry)
    layers = encoder_layers(entry)
    if layers is not None:
        count: int | None = encoder_parameters(layers)
    else:
        count = parameters(known, head=group == "models") if known else None
    place = "this package" if entry.kind == "embedded" else entry.target
    gated = " (licence to be accepted on the hub)" if entry.gated else ""
    if entry.packaged is not None:
        place, gated = f"safebench[{entry.packaged.extra}]", f" (under {entry.packaged.terms})"
    return entry.name, size(count), entry.licence, place, entry.description + gated
