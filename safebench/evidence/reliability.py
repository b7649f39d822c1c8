"""Reliability metrics of Chan et al. 2020 (arXiv 1912.05663), in units of sigma_0.

One run is a curve R_1 ... R_n of reward per step; Delta_t = R_{t+1} - R_t and D_t = max_{u<=t} R_u - R_t.
The normaliser is the initial policy's reward spread: a curve's own range is near zero where it is flat, and
its mean where reward crosses zero. Non-finite values are left out. Too few values give NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safebench.evidence.signals import Smoothed

TAIL = 0.05
Curve = Sequence[float] | NDArray[np.float64]
Array = NDArray[np.float64]


def changes(curve: Curve, sigma0: float) -> Array:
    """Delta, n - 1 values in sigma_0 per step."""
    return np.diff(_finite(curve)) / sigma0


def drawdowns(curve: Curve, sigma0: float) -> Array:
    """D, n values in sigma_0, none below 0."""
    data = _finite(curve)
    return (np.maximum.accumulate(data) - data) / sigma0 if data.size else data


def dispersion_across_time(curve: Curve, sigma0: float, window: int) -> float:
    """Volatility: interquartile range of Delta in each window of ``window`` changes, mean over all windows."""
    delta = changes(curve, sigma0)
    if not delta.size:
        return math.nan
    windows = np.lib.stride_tricks.sliding_window_view(delta, min(window, delta.size))
    low, high = np.quantile(windows, [0.25, 0.75], axis=1)
    return float(np.mean(high - low))


def short_term_risk(curve: Curve, sigma0: float, tail: float = TAIL) -> float:
    """Mean of the Delta at or below their ``tail`` quantile; a fall is negative."""
    delta = changes(curve, sigma0)
    return float(delta[delta <= np.quantile(delta, tail)].mean()) if delta.size else math.nan


def max_drawdown(curve: Curve, sigma0: float) -> float:
    """Largest D: the deepest fall from a former best, at least 0."""
    depths = drawdowns(curve, sigma0)
    return float(depths.max()) if depths.size else math.nan


def long_term_risk(curve: Curve, sigma0: float, tail: float = TAIL) -> float:
    """Mean of the D at or above their ``1 - tail`` quantile, at least 0."""
    depths = drawdowns(curve, sigma0)
    return float(depths[depths >= np.quantile(depths, 1 - tail)].mean()) if depths.size else math.nan


def smoothed(curve: Curve, span: float) -> Array:
    """Low-passed curve, one value per step: the crash specification's moving average."""
    average = Smoothed(span)
    return np.array([average.update(step, float(value)) for step, value in enumerate(_finite(curve))])


def dispersion_across_runs(curves: Sequence[Curve], sigma0: float, span: float) -> float:
    """Interquartile range over runs of the low-passed curves, mean over the steps that every run has."""
    low_passed = [smoothed(curve, span) for curve in curves]
    steps = min((curve.size for curve in low_passed), default=0)
    if len(low_passed) < 2 or not steps:
        return math.nan
    low, high = np.quantile([curve[:steps] for curve in low_passed], [0.25, 0.75], axis=0)
    return float(np.mean(high - low)) / sigma0


def risk_across_runs(finals: Sequence[float], tail: float = TAIL) -> tuple[float, bool]:
    """Mean of the runs at or below the ``tail`` quantile, in their unit, and whether that is just the minimum."""
    data = _finite(finals)
    if not data.size:
        return math.nan, True
    worst = data[data <= np.quantile(data, tail)]
    return float(worst.mean()), bool(np.all(worst == data.min()))


def _finite(values: Curve) -> Array:
    data = np.asarray(values, dtype=np.float64)
    return data[np.isfinite(data)]
