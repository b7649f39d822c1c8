"""A phase rule that knows its own noise: SAFE's phases with a rise held against its standard error."""

from __future__ import annotations

import math
from statistics import fmean, variance
from typing import Protocol


class StandardisedRule(Protocol):
    """Settings of the rule (``settings.penalty.Phase``)."""

    window: int
    good: float
    sure: float


def standardised_phase(rule: StandardisedRule, rewards: tuple[float, ...], first: float) -> str:
    """Return the phase that the rewards put the run in, after SAFE's equation 8, in units of the rewards' own noise.

    With n the window, a the last n rewards, b the n before them: z = (mean a - mean b) / sqrt(var a / n + var b / n).
    ``warmup`` before 2n rewards; then ``climbing`` if z > ``sure``; else ``converged`` if |z| <= ``sure`` and mean a
    lies more than ``good`` above ``first``; else, and where a reward is not finite, ``plateau``. Rewards in sigma_0,
    oldest first (the last 2n suffice); ``first`` is the reward of the first batch, which the untouched policy sampled.

    Departs from the published rule in what it holds a change against: a fixed rise of 0.01 fires on 39 % of flat
    windows at 32 replies a batch, and a spread below 0.02 cannot be had from such batches. Here both are standard
    errors, and "good" is a gain, so that neither the reward's scale nor its zero decides.
    """
    n = rule.window
    if len(rewards) < 2 * n:
        return "warmup"
    if not all(map(math.isfinite, (*rewards[-2 * n :], first))):
        return "plateau"
    recent, before = rewards[-n:], rewards[-2 * n : -n]
    z = standard_score(recent, before)
    if z > rule.sure:
        return "climbing"
    return "converged" if abs(z) <= rule.sure and fmean(recent) - first > rule.good else "plateau"


def standard_score(recent: tuple[float, ...], before: tuple[float, ...]) -> float:
    """Return the difference of the means over its standard error (Welch 1947); 0 where both are constant and equal."""
    difference = fmean(recent) - fmean(before)
    error = math.sqrt(variance(recent) / len(recent) + variance(before) / len(before))
    if error == 0.0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error
