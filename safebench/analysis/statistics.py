"""Compute statistics of few seeds: paired and independent differences, exact tests, intervals, detectable effects.

Everything is two-sided at 95 % unless an argument says otherwise. An undefined value is NaN (an interval of one value,
a test of none). Random generators are given by the caller or have seed 0.

Arms that are not paired by seed are independent samples: no value of one belongs to a particular value of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Values = Sequence[float]
ALPHA = 0.05
POWER = 0.8
PAIRED = "paired t"
_UNIT = (np.arange(4096) + 0.5) / 4096  # midpoints of a quadrature over quantiles
HALVINGS = 60
"""Steps of the bisection: they reduce an interval some tens wide to below the last digit of a double."""
EXACT_SIGNS = 20
"""Number of pairs up to which the sign-flip test visits every pattern of signs."""


@dataclass(frozen=True)
class Estimate:
    """A mean (or difference of means) with its confidence interval.

    ``p`` is the two-sided p-value of the test, if one was made. ``detectable`` is the difference that such data would
    have shown with power 0.8 at alpha 0.05, in the values' unit.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    p: float = math.nan
    detectable: float = math.nan

    @property
    def margin(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2.0


def mean(values: Values, confidence: float = 1 - ALPHA) -> Estimate:
    """Return the mean with Student's t-interval; fewer than two values have no interval."""
    data = array(values)
    centre = float(data.mean()) if data.size else math.nan
    margin = _t_margin(data, confidence)
    return Estimate(centre, centre - margin, centre + margin, data.size, "t")


def paired(second: Values, first: Values, confidence: float = 1 - ALPHA) -> Estimate:
    """Return the mean of ``second - first`` by pair: t-interval, exact sign-flip p, detectable difference."""
    if len(second) != len(first):
        raise ValueError(f"pairs need equal lengths, not {len(second)} and {len(first)}")
    data = array(second) - array(first)
    estimate = mean([float(value) for value in data], confidence)
    spread = float(data.std(ddof=1)) if data.size > 1 else math.nan
    reach = detectable(spread, data.size, 1 - confidence)
    return Estimate(estimate.value, estimate.low, estimate.high, data.size, PAIRED, sign_flip(data.tolist()), reach)


def sign_flip(differences: Values, generator: np.random.Generator | None = None, draws: int = 100_000) -> float:
    """Return the p-value of the sign-flip test: the share of sign patterns whose sum is at least as far from zero.

    The test is exact up to 20 pairs. Beyond that, patterns are drawn with ``generator`` (default: seed 0), and p is
    never zero. On differences of two yes-or-no outcomes it is McNemar's exact test. It is NaN without differences.
    """
    data = array(differences)
    if not data.size:
        return math.nan
    seen = abs(float(data.sum())) - 1e-12 * float(np.abs(data).sum())  # rounding must not separate equal sums
    if data.size <= EXACT_SIGNS:
        sums = np.zeros(1)
        for value in data:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= seen))
    generator = generator or np.random.default_rng(0)
    hits = sum(
        int(np.sum(np.abs(generator.choice([-1.0, 1.0], (size, data.size)) @ data) >= seen))
        for size in chunks(draws, 10_000)
    )
    return (hits + 1) / (draws + 1)


def smallest_p(n: int) -> float:
    """Return the smallest two-sided p-value that n pairs can give in the sign-flip test."""
    return min(1.0, 2.0 ** (1 - n))


def detectable(spread: float, n: float, alpha: float = ALPHA, power: float = POWER, samples: int = 1) -> float:
    """Return the smallest true difference that a t-test finds with the given power, in the unit of ``spread``.

    ``spread`` is the standard deviation of the paired differences (``samples=1``) or of each of two independent samples
    of size n (``samples=2``). ``n`` is the number of pairs or the size of each sample.
    """
    if n < 2 or not math.isfinite(spread):
        return math.nan
    return _shift(samples * (n - 1), alpha, power) * spread * math.sqrt(samples / n)


@lru_cache
def _shift(freedom: float, alpha: float, power: float) -> float:
    """Return the noncentrality that gives the two-sided t-test its power.

    The statistic is (Z + shift) / sqrt(chi2 / freedom).
    """
    critical = student(alpha, freedom)
    limits = critical * np.sqrt(special.chdtri(freedom, 1 - _UNIT) / freedom)

    def shortfall(shift: float) -> float:
        return float(np.mean(special.ndtr(shift - limits) + special.ndtr(-shift - limits))) - power

    low, high = 0.0, 2 * critical + 10.0
    for _ in range(HALVINGS):  # to import scipy.optimize would cost every command a fifth of a second
        middle = (low + high) / 2
        low, high = (middle, high) if shortfall(middle) < 0 else (low, middle)
    return (low + high) / 2


def student(alpha: float, freedom: float) -> float:
    """Return the quantile of Student's t that a two-sided test at ``alpha`` uses."""
    return float(special.stdtrit(freedom, 1 - alpha / 2))


def clopper_pearson(successes: int, n: int, confidence: float = 1 - ALPHA) -> Estimate:
    """Return the share with its exact binomial interval (Clopper & Pearson 1934)."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0, "Clopper-Pearson")
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Estimate(successes / n, low, high, n, "Clopper-Pearson")


def holm(p_values: Mapping[str, float], family: int | None = None) -> dict[str, float]:
    """Return Holm's adjusted p-values (1979): step-down Bonferroni, monotone, at most 1.

    ``family`` is the number of declared tests, if some of them could not be made; NaN stays NaN.
    """
    made = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    size, adjusted, highest = family or len(made), dict(p_values), 0.0
    for rank, (p, name) in enumerate(made):
        highest = max(highest, min(1.0, (size - rank) * p))
        adjusted[name] = highest
    return adjusted


def bca(values: Values, generator: np.random.Generator, draws: int = 9_999, confidence: float = 1 - ALPHA) -> Estimate:
    """Return the mean with the bias-corrected and accelerated bootstrap interval; it needs eight values."""
    from scipy import stats

    data = array(values)
    if data.size < 8:
        raise ValueError(f"the BCa interval needs at least 8 values, not {data.size}")
    centre = float(data.mean())
    if np.ptp(data) == 0.0:
        return Estimate(centre, centre, centre, data.size, "BCa")
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=draws, confidence_level=confidence, method="BCa", rng=generator
    ).confidence_interval
    return Estimate(centre, float(found.low), float(found.high), data.size, "BCa")


def median_survival(times: Values, seen: Sequence[bool]) -> float:
    """Return the Kaplan-Meier median: the first time at which at most half survive; infinite if more than half do.

    ``times`` are times of the event if ``seen``, else of the last observation. The median is NaN without runs.
    """
    if not times:
        return math.nan
    alive = 1.0
    for time in sorted({time for time, event in zip(times, seen, strict=True) if event}):
        at_risk = sum(other >= time for other in times)
        events = sum(other == time and event for other, event in zip(times, seen, strict=True))
        alive *= 1 - events / at_risk
        if alive <= 0.5 + 1e-12:
            return time
    return math.inf


def array(values: Values) -> NDArray[np.float64]:
    """Return values as numbers of double precision."""
    return np.asarray(values, dtype=np.float64)


def _t_margin(data: NDArray[np.float64], confidence: float) -> float:
    if data.size < 2:
        return math.nan
    return student(1 - confidence, data.size - 1) * float(data.std(ddof=1)) / math.sqrt(data.size)


def chunks(total: int, size: int) -> list[int]:
    """Split ``total`` into parts of ``size``; the last part is the remainder."""
    return [min(size, total - start) for start in range(0, total, size)]


WELCH, NEWCOMBE = "Welch", "Newcombe"
EXACT_LABELS = 200_000
"""Number of label patterns up to which the permutation test visits every one: ten runs in each of two arms."""


def unpaired(second: Values, first: Values, confidence: float = 1 - ALPHA) -> Estimate:
    """Return the difference of means ``second - first`` of independent samples: Welch's interval, permutation p.

    The interval is Student's with Welch and Satterthwaite's degrees of freedom. ``n`` is the size of the smaller
    sample. The detectable difference is computed for equal samples of the harmonic mean size.
    """
    a, b = array(second), array(first)
    if not a.size or not b.size:
        return Estimate(math.nan, math.nan, math.nan, 0, WELCH)
    difference, n, p = float(a.mean() - b.mean()), int(min(a.size, b.size)), permutation(second, first)
    if n < 2:
        return Estimate(difference, math.nan, math.nan, n, WELCH, p)
    parts = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    error = math.sqrt(sum(parts))
    if error == 0.0:
        return Estimate(difference, difference, difference, n, WELCH, p, 0.0)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (a.size - 1) + parts[1] ** 2 / (b.size - 1))
    margin = student(1 - confidence, freedom) * error
    pooled = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    reach = detectable(pooled, 2 * a.size * b.size / (a.size + b.size), 1 - confidence, samples=2)
    return Estimate(difference, difference - margin, difference + margin, n, WELCH, p, reach)


def permutation(
    second: Values, first: Values, generator: np.random.Generator | None = None, draws: int = 100_000
) -> float:
    """Return the p-value of the permutation test: the share of label patterns with means at least as far apart.

    The samples are independent. The test is exact up to EXACT_LABELS patterns. Beyond that, patterns are drawn with
    ``generator`` (default: seed 0), and p is never zero. It is NaN if a sample is empty.
    """
    data, n = np.concatenate([array(second), array(first)]), len(second)
    if not n or n == data.size:
        return math.nan
    slack = 1e-12 * float(np.abs(data).sum())  # rounding must not separate equal differences
    data = data - data.mean()  # a sample's sum is now its difference to the other up to a factor
    seen = abs(float(data[:n].sum())) - slack
    if math.comb(data.size, n) <= EXACT_LABELS:
        return float(np.mean(np.abs(data[labels(data.size, n)].sum(axis=1)) >= seen))
    generator = generator or np.random.default_rng(0)
    hits = sum(
        int(np.sum(np.abs(generator.permuted(np.tile(data, (size, 1)), axis=1)[:, :n].sum(axis=1)) >= seen))
        for size in chunks(draws, 10_000)
    )
    return (hits + 1) / (draws + 1)


@lru_cache(maxsize=8)
def labels(total: int, n: int) -> NDArray[np.uint8]:
    """Return every choice of n of ``total`` indices, one per row."""
    return np.fromiter(chain.from_iterable(combinations(range(total), n)), np.uint8).reshape(-1, n)


def newcombe(successes: int, n: int, others: int, m: int, confidence: float = 1 - ALPHA) -> Estimate:
    """Return the difference of two independent shares, ``successes / n - others / m``, and Fisher's exact p.

    The interval is Newcombe's from Wilson's interval of either share (1998, method 10).
    """
    if not n or not m:
        return Estimate(math.nan, math.nan, math.nan, 0, NEWCOMBE)
    first, second = successes / n, others / m
    (low, high), (other_low, other_high) = _wilson(successes, n, confidence), _wilson(others, m, confidence)
    below, above = math.hypot(first - low, other_high - second), math.hypot(high - first, second - other_low)
    value = first - second
    return Estimate(value, value - below, value + above, min(n, m), NEWCOMBE, fisher(successes, n, others, m))


def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share (1927)."""
    z = float(special.ndtri((1 + confidence) / 2))
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - margin), min(1.0, centre + margin)


def fisher(successes: int, n: int, others: int, m: int) -> float:
    """Return the two-sided p-value of Fisher's exact test for ``successes`` of n against ``others`` of m."""
    total = successes + others
    chances = {k: math.comb(n, k) * math.comb(m, total - k) for k in range(max(0, total - m), min(n, total) + 1)}
    return sum(chance for chance in chances.values() if chance <= chances[successes]) / math.comb(n + m, total)


def probability_of_improvement(second: Values, first: Values) -> float:
    """Return P(a run of ``second`` beats one of ``first``) = U / (n m), where a tie counts one half."""
    a, b = array(second), array(first)
    if not a.size or not b.size:
        return math.nan
    return float(np.mean((a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])))
