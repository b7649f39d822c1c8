"""Decide when a comparison has enough seeds, by a group-sequential test after every round of seeds.

The construction is that of AdaStop (Mathieu et al. 2023, arXiv 2306.10882). Each boundary is a quantile of the
permutation distribution, conditional on no earlier crossing. The error that each look may spend is declared beforehand
(Lan & DeMets 1983).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safebench.analysis import frontier
from safebench.analysis.rows import CRASH_RATE, BySeed
from safebench.analysis.scalars import SCALARS, Scalar, Summary
from safebench.analysis.statistics import Values, array, labels
from safebench.errors import UsageError

EXACT_WAYS = 2**20
"""Number of sign or label patterns up to which all of them are visited: twenty pairs."""
DRAWS = 99_999
"""Number of patterns drawn beyond that; with the observed one they are 100,000."""
_ROUNDING = 1e-12
"""Share of the values' absolute sum below which a difference of two statistics counts as zero."""


@dataclass(frozen=True)
class Round:
    """The values of one round, whose signs (``second`` None) or labels are exchangeable if the arms do not differ.

    ``values`` [n] are differences of pairs, or the values of two arms minus their common mean, those of the second arm
    first. ``second`` is the number of values of the second arm.
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
    """Return the round of n pairs; their differences ``second - first`` are symmetric about 0 if arms do not differ.

    Raises ``ValueError`` for unequal lengths and for values that are not finite.
    """
    if len(second) != len(first):
        raise ValueError(f"pairs need equal lengths, not {len(second)} and {len(first)}")
    return Round(_finite(array(second) - array(first)))


def unpaired_round(second: Values, first: Values) -> Round:
    """Return the round of n and m independent values, whose labels are exchangeable if the arms do not differ.

    A round's part of the statistic is n m / (n + m) times the difference of its means; rounds are never mixed. A round
    without values of one arm contributes nothing. Raises ``ValueError`` for values that are not finite.
    """
    pooled = _finite(np.concatenate([array(second), array(first)]))
    if not len(second) or not len(first):
        return Round(np.zeros(0))
    return Round(pooled - pooled.mean(), len(second))


def spent_by(alpha: float, seeds: int, most: int) -> float:
    """Return the error that may be spent by the look after ``seeds`` of at most ``most`` seeds: alpha · seeds / most.

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
    """The result of the test after a round.

    ``statistic`` is T_k = Σ of the rounds' parts; it crosses if |T_k| > ``boundary``. ``n`` is the number of values so
    far (pairs, or runs of both arms). ``spent`` is the error spent so far, at most what the spending function allows.
    """

    n: int
    statistic: float
    boundary: float
    spent: float
    crossed: bool
    exact: bool
    """Whether every pattern was visited; otherwise patterns were drawn."""


def group_sequential(
    rounds: Sequence[Round], allowed: Sequence[float], *, seed: int = 0, draws: int = DRAWS
) -> tuple[Look, ...]:
    """Return a look after every round, up to the first that crosses its boundary.

    Let g be a pattern of signs or labels, T_k(g) the statistic of the first k rounds under g, a_k = ``allowed`` the
    error that may be spent by look k (it never falls), and s_k the error spent by then::

        b_k = min {b : P_g(|T_k(g)| > b and |T_j(g)| <= b_j for all j < k) <= a_k - s_(k-1)}
        s_k = s_(k-1) + P_g(|T_k(g)| > b_k and |T_j(g)| <= b_j for all j < k)

    This is AdaStop's boundary (Mathieu et al. 2023, arXiv 2306.10882); error that one look cannot spend is left to the
    next. Given the values without their signs or labels, the boundaries are fixed, and all patterns are equally likely
    if the arms do not differ. The probability of any crossing is therefore E[s_K] <= a_K for any distribution. P_g is
    over all patterns up to EXACT_WAYS. Beyond that, it is over ``draws`` patterns and the observed one, which keeps
    that bound. Generators are made from ``seed`` and the number of the round, so that a later look continues with the
    patterns of an earlier one.

    Raises ``ValueError`` unless ``allowed`` has one value for each round, none smaller than the one before.
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


Summaries = Mapping[str, Sequence[Summary]]
State = Literal["decided", "open", "undecided", "not measured"]

PRIMARY: tuple[Scalar, ...] = (*(scalar for scalar in SCALARS if scalar.primary), CRASH_RATE)
"""The metrics to decide, declared before any run."""


@dataclass(frozen=True)
class Rule:
    """Seeds are added ``size`` at a time, up to ``most``; ``alpha`` bounds the chance of any false decision."""

    alpha: float = 0.05
    size: int = 5
    most: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha {self.alpha:g} is no probability between 0 and 1", hint="Such as --alpha 0.05.")
        if self.size > self.most:
            raise UsageError(f"--round {self.size} is more than --max-seeds {self.most}", hint="Lower --round.")

    def rounds(self) -> list[list[int]]:
        """Return the seeds of every round: round k has (k - 1)·size … k·size - 1; the last one may be shorter."""
        return [list(range(k, min(k + self.size, self.most))) for k in range(0, self.most, self.size)]


@dataclass(frozen=True)
class Decision:
    """The decision on one primary metric of one arm against the baseline, after the rounds so far.

    ``looks`` are the rounds until the decision, or all so far; ``last`` means that no more seeds may be added.
    """

    metric: str
    label: str
    direction: str
    arm: str
    baseline: str
    paired: bool
    measured: bool
    last: bool
    looks: tuple[Look, ...]

    @property
    def state(self) -> State:
        """State of the decision: ``open`` while more seeds may be added."""
        if self.looks and self.looks[-1].crossed:
            return "decided"
        if not self.measured:
            return "not measured"
        return "undecided" if self.last else "open"

    @property
    def better(self) -> str | None:
        """The arm that was found better; None if nothing is decided."""
        if self.state != "decided":
            return None
        up = self.looks[-1].statistic > 0
        return self.arm if up != (self.direction == "down") else self.baseline

    def told(self) -> str:
        """Return the decision as a sentence, with the last look's numbers."""
        against = f"{self.label} ({self.arm} against {self.baseline})"
        if self.state == "not measured":
            return f"not measured: {against}"
        look, rounds = self.looks[-1], len(self.looks)
        worse = self.baseline if self.better == self.arm else self.arm
        said = (
            f"decided: {self.better} better than {worse} on {self.label}"
            if self.better
            else f"{'undecided' if self.last else 'not decided yet'}: {against}"
        )
        what = "pairs" if self.paired else "runs"
        sums = f"|sum| {abs(look.statistic):.4g}, boundary {look.boundary:.4g}"
        return f"{said} (round {rounds}, {look.n} {what}; {sums}; error spent {look.spent:.2g})"


@dataclass(frozen=True)
class Stopping:
    """The decisions after ``rounds`` rounds. ``share`` is each test's part of alpha, ``level`` the matched KL."""

    rule: Rule
    rounds: int
    share: float
    level: float
    decisions: tuple[Decision, ...]

    @property
    def over(self) -> bool:
        """Whether no more seeds are needed: no decision is open."""
        return all(decision.state != "open" for decision in self.decisions)

    def rule_told(self) -> str:
        """Return the rule in one paragraph."""
        rule, total = self.rule, len(self.rule.rounds())
        first = _first_possible(rule, self.share)
        from_ = f"from {first} pairs on" if first else "never"
        level = "" if math.isnan(self.level) else (
            f" Matched KL here: {self.level:.3g} nats per reply, fixed by round 1 from all arms' runs together."
        )  # fmt: skip
        tests = round(rule.alpha / self.share)
        return (
            f"Rule: {rule.size} seeds a round, {self.rounds} of {total} rounds made, at most {rule.most} seeds. "
            f"Each primary metric has a group-sequential sign-flip test (of unpaired arms: labels exchanged within "
            f"rounds), after AdaStop (arXiv 2306.10882). The chance of any false decision is at most {rule.alpha:g}: "
            f"Bonferroni gives each of {tests} tests {self.share:.2g}, spent in proportion to the seeds. "
            f"Pairs can decide {from_}: n pairs cannot reach a share below 2^(1 − n).{level} Another --round, "
            f"--max-seeds or --alpha chosen after looking is another test."
        )


def decide(
    summaries: Summaries, unpaired: Sequence[str], rule: Rule, rounds: int, metrics: Sequence[str] | None = None
) -> Stopping:
    """Return the decisions after ``rounds`` rounds of ``rule``; the first arm of ``summaries`` is the baseline.

    ``metrics`` are the keys of the primary metrics to decide (all if None). Alpha is split evenly over all primary
    metrics and arms, whichever are requested. Bonferroni's bound holds at any look, since it adds the probabilities
    that a test ever crosses. A pair (or an unpaired run) without a measured value is left out. The decisions depend on
    the runs alone, and a decision stays when rounds are added.
    """
    first, *others = summaries
    share = rule.alpha / (len(PRIMARY) * max(1, len(others)))
    seeds = rule.rounds()[:rounds]
    level = _level(summaries, seeds[0])
    wanted = [scalar for scalar in PRIMARY if metrics is None or scalar.key in metrics]
    values = {
        (scalar.key, arm): {s.run.seed: _value(s, scalar, level) for s in found}
        for scalar in wanted
        for arm, found in summaries.items()
    }
    allowed = [spent_by(share, group[-1] + 1, rule.most) for group in seeds]
    decisions = []
    for arm in others:
        paired = not {arm, first} & {*unpaired}
        for scalar in wanted:
            made = [_round(values[scalar.key, arm], values[scalar.key, first], group, paired) for group in seeds]
            decisions.append(
                Decision(
                    metric=scalar.key,
                    label=scalar.label,
                    direction=scalar.direction,
                    arm=arm,
                    baseline=first,
                    paired=paired,
                    measured=any(one.values.size for one in made),
                    last=rounds == len(rule.rounds()),
                    looks=group_sequential(made, allowed),
                )
            )
    return Stopping(rule, rounds, share, level, tuple(decisions))


def _round(second: BySeed, first: BySeed, seeds: Sequence[int], paired: bool) -> Round:
    a, b = (
        {seed: found[seed] for seed in seeds if math.isfinite(found.get(seed, math.nan))} for found in (second, first)
    )
    if not paired:
        return unpaired_round(list(a.values()), list(b.values()))
    both = [seed for seed in seeds if seed in a and seed in b]
    return paired_round([a[seed] for seed in both], [b[seed] for seed in both])


def _value(summary: Summary, scalar: Scalar, level: float) -> float:
    if scalar == CRASH_RATE:
        return float(summary.crashed)
    if scalar.key == "judge_matched":
        return math.nan if math.isnan(level) else frontier.passage(frontier.run_path(summary.run), level).judge
    return summary.values[scalar.key]


def _level(summaries: Summaries, seeds: Sequence[int]) -> float:
    """Return the matched KL, nats per reply: all but one in 2A of the first round's runs reach it; NaN without KL.

    At least half of the runs of each of the A arms therefore reach it. The level uses all arms together and the first
    round alone. Exchanging arms within a seed therefore does not change it, and a later round does not change earlier
    statistics.
    """
    runs = [summary.run for found in summaries.values() for summary in found if summary.run.seed in seeds]
    reaches = [path.reach for path in map(frontier.run_path, runs) if path.points]
    level = float(np.quantile(reaches, 0.5 / len(summaries), method="lower")) if reaches else 0.0
    return level if level > 0 else math.nan


def _first_possible(rule: Rule, share: float) -> int | None:
    """Return the smallest number of pairs at which the rule can decide; None if it never can."""
    ends = (group[-1] + 1 for group in rule.rounds())
    return next((n for n in ends if 2.0 ** (1 - n) <= spent_by(share, n, rule.most)), None)
