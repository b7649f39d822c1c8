"""Group-sequential permutation test: a difference is tested after every round of seeds, with one error over all looks.

The construction is that of AdaStop (Mathieu et al. 2023, arXiv 2306.10882). Each boundary is a quantile of the
permutation distribution, conditional on no earlier crossing; how much error each look may spend is declared beforehand
(Lan & DeMets 1983).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safebench.evidence.independent import labels
from safebench.evidence.statistics import Values, array

EXACT_WAYS = 2**20
"""Patterns of signs or labels up to which all of them are visited: twenty pairs."""
DRAWS = 99_999
"""Patterns drawn beyond that; with the one that was observed they are 100,000."""
_ROUNDING = 1e-12
"""Share of the values' absolute sum below which two statistics are equal."""


@dataclass(frozen=True)
class Round:
    """The values of one round, whose signs (``second`` None) or labels can be exchanged where the arms do not differ.

    ``values`` [n] are differences of pairs, or the values of two arms minus their common mean, those of the second arm
    first; ``second`` is the number of these.
    """

    values: NDArray[np.float64]
    second: int | None = None

    @property
    def observed(self) -> float:
        """The round's part of the statistic: the sum of the differences, or of the second arm's centred values."""
        return float(self.values[: self.second].sum())

    @property
    def ways(self) -> int:
        """Number of patterns: 2^n of signs, n choose ``second`` of labels."""
        return 2**self.values.size if self.second is None else math.comb(self.values.size, self.second)

    def every(self) -> NDArray[np.float64]:
        """Return the round's part of the statistic under every pattern, [ways]."""
        if self.second is not None:
            return np.asarray(self.values[labels(self.values.size, self.second)].sum(axis=1), dtype=np.float64)
        sums = np.zeros(1)
        for value in self.values:
            sums = np.concatenate([sums + value, sums - value])
        return sums

    def drawn(self, draws: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Return the round's part of the statistic under the observed pattern and ``draws`` others, [1 + draws]."""
        if self.second is None:
            others = generator.choice([-1.0, 1.0], (draws, self.values.size)) @ self.values
        else:
            mixed = generator.permuted(np.tile(self.values, (draws, 1)), axis=1)
            others = mixed[:, : self.second].sum(axis=1)
        return np.concatenate([[self.observed], others])


def paired_round(second: Values, first: Values) -> Round:
    """Return the round of n pairs, whose differences ``second - first`` are symmetric about 0 where arms do not differ.

    Raises ``ValueError`` for unequal lengths and for values that are not finite.
    """
    if len(second) != len(first):
        raise ValueError(f"pairs need equal lengths, not {len(second)} and {len(first)}")
    return Round(_finite(array(second) - array(first)))


def unpaired_round(second: Values, first: Values) -> Round:
    """Return the round of n and m independent values, whose labels can be exchanged where arms do not differ.

    A round's part of the statistic is n m / (n + m) times the difference of its means; rounds are never mixed. A round
    without values of one arm says nothing. Raises ``ValueError`` for values that are not finite.
    """
    pooled = _finite(np.concatenate([array(second), array(first)]))
    if not len(second) or not len(first):
        return Round(np.zeros(0))
    return Round(pooled - pooled.mean(), len(second))


def spent_by(alpha: float, seeds: int, most: int) -> float:
    """Error that may be spent by the look after ``seeds`` of at most ``most`` seeds: alpha · seeds / most.

    This is the linear spending function of Lan & DeMets (1983, Biometrika 70, 659-663). Raises ``ValueError`` for an
    ``alpha`` outside (0, 1) and for ``seeds`` outside [1, ``most``].
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, not {alpha}")
    if not 1 <= seeds <= most:
        raise ValueError(f"{seeds} of at most {most} seeds")
    return alpha * seeds / most


@dataclass(frozen=True)
class Look:
    """What was seen after a round.

    ``statistic`` is T_k = Σ of the rounds' parts; it crosses where |T_k| > ``boundary``. ``n`` counts the values so far
    (pairs, or runs of both arms); ``spent`` is the error spent by then, at most what the spending function allows.
    """

    n: int
    statistic: float
    boundary: float
    spent: float
    crossed: bool
    exact: bool
    """Every pattern was visited; otherwise they were drawn."""


def group_sequential(
    rounds: Sequence[Round], allowed: Sequence[float], *, seed: int = 0, draws: int = DRAWS
) -> tuple[Look, ...]:
    """Return a look after every round, up to the first that crosses its boundary.

    With g a pattern of signs or labels, T_k(g) the statistic of the first k rounds under it, a_k ``allowed`` (the error
    that may be spent by look k, never falling) and s_k the error spent by then::

        b_k = min {b : P_g(|T_k(g)| > b and |T_j(g)| <= b_j for all j < k) <= a_k - s_(k-1)}
        s_k = s_(k-1) + P_g(|T_k(g)| > b_k and |T_j(g)| <= b_j for all j < k)

    (AdaStop's boundary, Mathieu et al. 2023, arXiv 2306.10882, with what one look cannot spend left to the next). Given
    the values without their signs or labels, the boundaries are fixed and all patterns are equally likely where arms do
    not differ, so the probability of any crossing is E[s_K] <= a_K, whatever the distribution. P_g is over all patterns
    up to EXACT_WAYS. Beyond, it is over ``draws`` patterns and the observed one, which keeps that bound. Generators are
    made from ``seed`` and the number of the round, so that a later look goes on with the patterns of an earlier one.

    Raises ``ValueError`` unless there is one value of ``allowed`` for each round, none smaller than the one before.
    """
    if len(rounds) != len(allowed) or any(b < a for a, b in itertools.pairwise(allowed)):
        raise ValueError(f"{len(rounds)} rounds need as many errors that never fall, not {list(allowed)}")
    looks: list[Look] = []
    sums, ways, exact, slack, spent = np.zeros(1), 1, True, 0.0, 0.0  # sums: of the patterns that have not crossed
    for k, (one, may) in enumerate(zip(rounds, allowed, strict=True)):
        if exact and ways * one.ways > EXACT_WAYS:
            exact, ways = False, draws + 1
            rows = _replayed(rounds[:k], looks, seed, draws)
        slack += _ROUNDING * float(np.abs(one.values).sum())
        if exact:
            ways *= one.ways
            sums = (sums[:, None] + one.every()).ravel()
        else:
            rows = rows + one.drawn(draws, np.random.default_rng([seed, k]))
            sums = rows[~np.isnan(rows)]
        boundary = _boundary(np.abs(sums), math.floor((may - spent) * ways + 1e-9))
        spent += float(np.sum(np.abs(sums) > boundary + slack)) / ways
        statistic = sum(past.observed for past in rounds[: k + 1])
        crossed = abs(statistic) > boundary + slack
        looks.append(
            Look(sum(past.values.size for past in rounds[: k + 1]), statistic, boundary, spent, crossed, exact)
        )
        if crossed:
            break
        if exact:
            sums = sums[np.abs(sums) <= boundary + slack]
        else:
            rows = np.where(np.abs(rows) <= boundary + slack, rows, np.nan)
    return tuple(looks)


def _boundary(sizes: NDArray[np.float64], count: int) -> float:
    """Return the smallest of ``sizes`` that at most ``count`` of them exceed; never so low that all could cross."""
    place = max(0, sizes.size - 1 - max(0, count))
    return float(np.partition(sizes, place)[place])


def _replayed(rounds: Sequence[Round], looks: Sequence[Look], seed: int, draws: int) -> NDArray[np.float64]:
    """Return the drawn patterns' statistics after ``rounds``, [1 + draws], NaN where a boundary was crossed."""
    rows, slack = np.zeros(1 + draws), 0.0
    for k, (one, look) in enumerate(zip(rounds, looks, strict=True)):
        slack += _ROUNDING * float(np.abs(one.values).sum())
        rows = rows + one.drawn(draws, np.random.default_rng([seed, k]))
        rows = np.where(np.abs(rows) <= look.boundary + slack, rows, np.nan)
    return rows


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError("a round takes finite values only; leave out what was not measured")
    return values
