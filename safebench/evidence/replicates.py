"""What rounding alone moves: runs beside their replicates, the same runs with sums in another order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from safebench.evidence.across import across_rows
from safebench.evidence.notes import commit, machine
from safebench.evidence.rows import Cell, Rounding, Row, crash_rows, pairs, scalar_rows
from safebench.evidence.specification import CrashSpec
from safebench.evidence.summary import Summary

Summaries = Mapping[str, Sequence[Summary]]

MACHINE = ("time_update", "tokens_per_second", "memory_peak")
"""Rows that another order of sums is not the reason for."""


def with_rounding(
    rows: Sequence[Row], originals: Summaries, replicates: Summaries, arms: Sequence[str], spec: CrashSpec
) -> tuple[Row, ...]:
    """Return the rows with each arm's ``Rounding``; replicates are in no other figure."""
    there = [arm for arm in arms if replicates.get(arm)]
    again = {arm: f"{arm}, replicate" for arm in there}  # in one table with the originals, so that no row is missing
    both = {**{arm: originals[arm] for arm in there}, **{again[arm]: replicates[arm] for arm in there}}
    found = [
        row
        for make in (scalar_rows(both, [*both]), across_rows(both, [*both], spec), crash_rows(both, [*both], spec))
        for row in make
    ] if there else []  # fmt: skip
    cells = {row.scalar.key: row.cells for row in found if row.scalar.key not in MACHINE}
    same = {arm for arm in there if _seeds(originals[arm]) == _seeds(replicates[arm])}
    return tuple(
        replace(
            row,
            rounding={
                arm: _rounding(row.kind, cells[row.scalar.key][again[arm]], cells[row.scalar.key][arm], arm in same)
                for arm in there
                if row.scalar.key in cells
            },
        )
        for row in rows
    )


def _rounding(kind: str, replicate: Cell, original: Cell, same_seeds: bool) -> Rounding:
    if kind == "across":
        moved = abs(replicate.estimate.value - original.estimate.value) if same_seeds else math.nan
        return Rounding(math.nan, moved, original.estimate.n)
    differences = np.array([second - first for second, first in pairs(replicate.values, original.values)])
    if not differences.size:
        return Rounding(math.nan, math.nan, 0)
    return Rounding(float(np.abs(differences).mean()), abs(float(differences.mean())), int(differences.size))


def told(replicates: Summaries) -> tuple[str, ...]:
    """Return the footer that says what the column means and which seeds it is from."""
    seeds = "; ".join(f"{arm} seeds {', '.join(map(str, _seeds(found)))}" for arm, found in replicates.items() if found)
    return (
        "rounding a / b: the same runs with sums in another order (compute.replicate); a is the mean over seeds of "
        f"|replicate − original|, b the size of their mean difference, of the arm where it is larger ({seeds}). "
        "A difference between arms of the size of b is no more than rounding does",
    )


def warnings(originals: Summaries, replicates: Summaries) -> tuple[str, ...]:
    """Return what may move the replicates beside rounding."""
    found = []
    for arm, again in replicates.items():
        for what, name in (("commit", commit), ("machine", machine)):
            made = {name(summary.run) for summary in (*originals[arm], *again)} - {""}
            if again and len(made) > 1:
                found.append(
                    f"the replicates of {arm} and their originals are not all from one {what}: not rounding alone "
                    "moves them"
                )
    return tuple(found)


def _seeds(found: Sequence[Summary]) -> list[int]:
    return sorted(summary.run.seed for summary in found)
