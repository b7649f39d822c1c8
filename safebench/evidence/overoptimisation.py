"""Fits of judge reward against KL: how soon what training gains is lost again.

Gao, Schulman, Hilton 2022 (arXiv 2210.10760), section 3.1, with d = sqrt(KL(policy || first policy)) in nats per reply
and R the judge reward's gain over the first policy:

- best of n: R(d) = d (alpha - beta d),
- reinforcement learning: R(d) = d (alpha - beta log d).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safebench.evidence import statistics
from safebench.evidence.best_of_n import Array, BestOf
from safebench.evidence.frontier import ArmPaths, RunPath
from safebench.evidence.statistics import Estimate

FEWEST = 3
"""Points beyond the first policy's that a fit of two numbers needs, so that something is left to disagree."""


@dataclass(frozen=True)
class Coefficients:
    """A fit of one curve: ``alpha`` and ``beta`` in judge reward per sqrt(nat), ``rest`` the residuals' RMS."""

    alpha: float
    beta: float
    rest: float


@dataclass(frozen=True)
class ArmFit:
    """An arm's fits: means over its seeds with t-intervals. ``peak`` is the KL of the fitted curve's top, nats per
    reply, the median over the seeds whose curve has one; NaN where none has.
    """

    arm: str
    alpha: Estimate
    beta: Estimate
    rest: Estimate
    peak: float


def fit_training(kl: Array, gain: Array) -> Coefficients:
    """Return the least-squares fit of R(d) = d (alpha - beta log d) to ``gain`` [n] at ``kl`` [n] > 0."""
    d = np.sqrt(kl)
    return _least_squares(np.stack([d, -d * np.log(d)], axis=1), gain)


def fit_best_of_n(kl: Array, gain: Array) -> Coefficients:
    """Return the least-squares fit of R(d) = d (alpha - beta d) to ``gain`` [n] at ``kl`` [n] > 0."""
    d = np.sqrt(kl)
    return _least_squares(np.stack([d, -d * d], axis=1), gain)


def peak_of_training(found: Coefficients) -> float:
    """Return the KL at the top of a fitted training curve, d = exp(alpha / beta - 1); NaN where it only rises or falls.

    dR/dd = alpha - beta (log d + 1) = 0.
    """
    return math.exp(2 * (found.alpha / found.beta - 1)) if found.beta > 0 else math.nan


def arm_fit(arm: ArmPaths) -> ArmFit | None:
    """Return an arm's fits; None where no seed has enough evaluations beyond the first policy's."""
    fits = [found for path in arm.paths if (found := path_fit(path)) is not None]
    if not fits:
        return None
    peaks = [top for found in fits if math.isfinite(top := peak_of_training(found))]
    alpha, beta = statistics.mean([found.alpha for found in fits]), statistics.mean([found.beta for found in fits])
    return ArmFit(arm.arm, alpha, beta, statistics.mean([found.rest for found in fits]), _median(peaks))


def path_fit(path: RunPath) -> Coefficients | None:
    """Return the fit of one run's evaluations; None without the first policy's, or with fewer than FEWEST others."""
    points = [point for point in path.points if math.isfinite(point.judge)]
    if not points or points[0].kl > 0.0:
        return None
    after = [point for point in points[1:] if point.kl > 0.0]
    if len(after) < FEWEST:
        return None
    return fit_training(np.array([p.kl for p in after]), np.array([p.judge - points[0].judge for p in after]))


def curve_fit(curve: Sequence[BestOf]) -> Coefficients | None:
    """Return the fit of best of n, from best of 2 on; None without a judge or with fewer than FEWEST points."""
    judged = [(best.kl, best.judge.value) for best in curve if best.judge is not None]
    if len(judged) <= FEWEST:
        return None
    kl, judge = (np.array(column) for column in zip(*judged, strict=True))
    return fit_best_of_n(kl[1:], judge[1:] - judge[0])


def _least_squares(design: Array, values: Array) -> Coefficients:
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    rest = design @ solution - values
    return Coefficients(float(solution[0]), float(solution[1]), float(np.sqrt(np.mean(rest**2))))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan
