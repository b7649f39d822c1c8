"""The frontier of judge reward against KL, as the page draws and words it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from safebench.evidence import overoptimisation
from safebench.evidence.best_of_n import BestOf
from safebench.evidence.compare import Comparison
from safebench.evidence.frontier import ArmPaths, Frontier, Level
from safebench.evidence.overoptimisation import ArmFit
from safebench.evidence.statistics import Estimate
from safebench.report import cells
from safebench.report.page.payload import rounded


def drawn(found: Frontier) -> dict[str, Any]:
    """Return the chart's data: per arm the mean path and the seeds' paths, as [step, KL, judge, ...] points."""
    return {
        "arms": {arm.arm: _arm(arm) for arm in found.arms},
        "reference": [_best(best) for best in found.best_of_n if best.judge is not None],
        "levels": [rounded(level.kl) for level in found.levels],
        "judged": any(math.isfinite(point.judge.value) for arm in found.arms for point in arm.mean),
    }


def matched_table(found: Frontier, comparison: Comparison) -> dict[str, Any]:
    """Return the table of arms at matched KL: a header and a row per level, as text."""
    arms = [arm.arm for arm in found.arms]
    others = [arm for arm in arms if arm != found.baseline] if found.baseline in arms else []
    header = ["KL [nats/reply]", *arms, *(cells.difference_heading(comparison, arm) for arm in others)]
    if found.best_of_n:
        header.append("best of n, no training")
    return {"header": header, "rows": [_level(level, arms, others, bool(found.best_of_n)) for level in found.levels]}


def fits_table(found: Frontier) -> dict[str, Any]:
    """Return the table of fits of judge reward against KL: a row per arm that has one, and best of n, as text."""
    rows = [_fit(fit) for arm in found.arms if (fit := overoptimisation.arm_fit(arm)) is not None]
    reference = overoptimisation.curve_fit(found.best_of_n)
    if reference is not None:
        figures = (cells.number(value, 0.01) for value in (reference.alpha, reference.beta))
        rows.append(["best of n: d (α − β d)", *figures, cells.number(reference.rest, 0.01), ""])
    return {"header": ["arm: d (α − β log d)", "α", "β", "residual", "KL at the top"], "rows": rows}


def _fit(fit: ArmFit) -> list[str]:
    figures = [cells.interval(estimate) for estimate in (fit.alpha, fit.beta, fit.rest)]
    return [f"{fit.arm} (n={fit.alpha.n})", *figures, cells.number(fit.peak, fit.peak)]


def _level(level: Level, arms: Sequence[str], others: Sequence[str], reference: bool) -> list[str]:
    judged = [_with_count(level.judge[arm], len(level.passages[arm])) for arm in arms]
    differences = [cells.interval(level.differences[arm], sign=True) for arm in others if arm in level.differences]
    row = [f"{level.kl:g}", *judged, *differences]
    return [*row, cells.number(level.reference, 0.01)] if reference else row


def _with_count(estimate: Estimate, seeds: int) -> str:
    return cells.interval(estimate) + (f" ({estimate.n})" if estimate.n != seeds else "")


def _arm(arm: ArmPaths) -> dict[str, Any]:
    return {
        "mean": [
            [point.step, rounded(point.kl.value), *_estimate(point.judge), point.kl.n]
            for point in arm.mean
            if math.isfinite(point.judge.value)
        ],
        "seeds": {
            str(path.seed): [
                [point.step, rounded(point.kl), rounded(point.judge)]
                for point in path.points
                if math.isfinite(point.judge)
            ]
            for path in arm.paths
        },
    }


def _best(best: BestOf) -> list[Any]:
    assert best.judge is not None
    return [best.n, rounded(best.kl), *_estimate(best.judge)]


def _estimate(estimate: Estimate) -> list[float | None]:
    return [rounded(estimate.value), rounded(estimate.margin)]
