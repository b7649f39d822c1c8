"""Two independent samples: Welch's interval, the permutation test, shares, the probability of improvement.

For arms that are not paired by seed. Nothing of one sample says which value of the other it belongs to.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from safebench.evidence.statistics import ALPHA, Estimate, Values, array, chunks, detectable, student

WELCH, NEWCOMBE = "Welch", "Newcombe"
EXACT_LABELS = 200_000
"""Ways to deal out the labels up to which the permutation test visits every one: ten runs in each of two arms."""


def unpaired(second: Values, first: Values, confidence: float = 1 - ALPHA) -> Estimate:
    """Difference of means ``second - first`` of independent samples: Welch's interval, the permutation test's p.

    The interval is Student's with Welch and Satterthwaite's degrees of freedom. ``n`` is the smaller sample's size;
    what could have been detected is computed for equal samples of the harmonic mean size.
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
    """p-value of the permutation test of independent samples: the share of ways to deal out the labels with means at
    least as far apart.

    Exact up to EXACT_LABELS ways; beyond, drawn with ``generator`` (default: seed 0) and never zero. NaN where a sample
    is empty.
    """
    data, n = np.concatenate([array(second), array(first)]), len(second)
    if not n or n == data.size:
        return math.nan
    slack = 1e-12 * float(np.abs(data).sum())  # equal differences must not part by rounding
    data = data - data.mean()  # then a sample's sum is its difference to the other, but for a factor
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
    """Every choice of n of ``total`` values, a row each."""
    return np.fromiter(chain.from_iterable(combinations(range(total), n)), np.uint8).reshape(-1, n)


def newcombe(successes: int, n: int, others: int, m: int, confidence: float = 1 - ALPHA) -> Estimate:
    """Difference of two independent shares, ``successes / n - others / m``, and Fisher's exact p.

    The interval is Newcombe's from Wilson's of either share (1998, method 10).
    """
    if not n or not m:
        return Estimate(math.nan, math.nan, math.nan, 0, NEWCOMBE)
    first, second = successes / n, others / m
    (low, high), (other_low, other_high) = _wilson(successes, n, confidence), _wilson(others, m, confidence)
    below, above = math.hypot(first - low, other_high - second), math.hypot(high - first, second - other_low)
    value = first - second
    return Estimate(value, value - below, value + above, min(n, m), NEWCOMBE, fisher(successes, n, others, m))


def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (1927)."""
    z = float(special.ndtri((1 + confidence) / 2))
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - margin), min(1.0, centre + margin)


def fisher(successes: int, n: int, others: int, m: int) -> float:
    """p-value of Fisher's exact test, two-sided, for ``successes`` of n against ``others`` of m."""
    total = successes + others
    chances = {k: math.comb(n, k) * math.comb(m, total - k) for k in range(max(0, total - m), min(n, total) + 1)}
    return sum(chance for chance in chances.values() if chance <= chances[successes]) / math.comb(n + m, total)


def probability_of_improvement(second: Values, first: Values) -> float:
    """P(a run of ``second`` beats one of ``first``) = U / (n m), a tie counting one half."""
    a, b = array(second), array(first)
    if not a.size or not b.size:
        return math.nan
    return float(np.mean((a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])))
