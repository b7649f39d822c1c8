"""Find inert loss terms: terms that are nonzero while their gradient is exactly zero, so that they have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from safebench.crashes.signals import finite
from safebench.metrics import LOSS_TERMS


class Run(Protocol):
    """The part of a recorded run that these functions read."""

    def column(self, key: str) -> NDArray[np.float64]:
        """Return a column of metrics.csv, NaN where a cell is empty."""
        ...


LOGGED_STEPS = 10
"""Consecutive counted steps without a gradient after which a term counts as inert."""


class Inert(NamedTuple):
    """A term's longest stretch without a gradient: first and last step, number of counted steps, largest value."""

    term: str
    first: int
    last: int
    logged: int
    largest: float
    """The value furthest from zero, with its sign."""


class Inertia:
    """Watches the loss terms row by row, live or from a file.

    A step counts for a term if ``loss/<term>`` and ``grad/<term>`` are both present and finite and the loss is nonzero.
    A term is inert if its gradient is exactly zero at ten counted steps in a row. Steps that do not count neither
    continue such a stretch nor end it; a nonzero gradient ends it.
    """

    def __init__(self) -> None:
        self._open: dict[str, Inert] = {}
        self._found: dict[str, Inert] = {}
        self._acted: set[str] = set()

    def update(self, row: Mapping[str, object]) -> None:
        """Process one row of metrics.csv, with cells as numbers or as text."""
        for term in LOSS_TERMS:
            value, gradient = finite(row, f"loss/{term}"), finite(row, f"grad/{term}")
            if not value or gradient is None:
                continue
            if gradient:
                self._open.pop(term, None)
                self._acted.add(term)
            else:
                self._extend(term, _step(row), value)

    def _extend(self, term: str, step: int, value: float) -> None:
        before = self._open.get(term, Inert(term, step, step, 0, 0.0))
        now = Inert(term, before.first, step, before.logged + 1, max(before.largest, value, key=abs))
        self._open[term] = now
        longest = self._found.get(term)
        if now.logged >= LOGGED_STEPS and (longest is None or now.logged >= longest.logged):
            self._found[term] = now

    def found(self) -> tuple[Inert, ...]:
        """Return the terms that were inert so far, in the schema's order, each with its longest stretch."""
        return tuple(self._found[term] for term in LOSS_TERMS if term in self._found)

    @property
    def acted(self) -> frozenset[str]:
        """Terms that had a nonzero gradient at a counted step."""
        return frozenset(self._acted)


def inert_in(run: Run) -> tuple[Inert, ...]:
    """Return the inert terms of a run, from its file."""
    return watched(_rows(run)).found()


def never_acted(run: Run, term: str) -> bool:
    """Return whether a term is inert and never had a gradient at a counted step: the run without it is the same.

    False for a term that is zero throughout, or that was measured too rarely to count as inert.
    """
    watch = watched(_rows(run))
    return term in {inert.term for inert in watch.found()} and term not in watch.acted


def watched(rows: Iterable[Mapping[str, object]]) -> Inertia:
    """Return the loss terms as watched over all rows."""
    watch = Inertia()
    for row in rows:
        watch.update(row)
    return watch


def _rows(run: Run) -> Iterator[Mapping[str, object]]:
    keys = ["step", *(f"{kind}/{term}" for term in LOSS_TERMS for kind in ("loss", "grad"))]
    columns = [run.column(key).tolist() for key in keys]
    return (dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True))


def sentence(inert: Inert) -> str:
    """Return a sentence that describes an inert term."""
    return (
        f"the loss term {inert.term} is inert: its gradient was exactly zero at {inert.logged} logged steps in a row "
        f"at which its value was not (steps {inert.first} to {inert.last}, as large as {inert.largest:.3g}), "
        "so it steers nothing"
    )


def _step(row: Mapping[str, object]) -> int:
    step = finite(row, "step")
    return 0 if step is None else int(step)
