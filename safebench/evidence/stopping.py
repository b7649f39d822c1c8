"""When a comparison has enough seeds: decisions about the primary metrics after every round of seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from safebench.errors import UsageError
from safebench.evidence import frontier
from safebench.evidence.rows import CRASH_RATE, BySeed
from safebench.evidence.scalars import SCALARS, Scalar
from safebench.evidence.sequential import Look, Round, group_sequential, paired_round, spent_by, unpaired_round
from safebench.evidence.summary import Summary

Summaries = Mapping[str, Sequence[Summary]]
State = Literal["decided", "open", "undecided", "not measured"]

PRIMARY: tuple[Scalar, ...] = (*(scalar for scalar in SCALARS if scalar.primary), CRASH_RATE)
"""The metrics that are decided, declared before any run."""


@dataclass(frozen=True)
class Rule:
    """Seeds are added ``size`` at a time, up to ``most``; ``alpha`` is the chance of any false decision."""

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
    """One primary metric of one arm against the baseline, after the rounds so far.

    ``looks`` are the rounds until it was decided, or all so far; ``last`` says that no more seeds may be added.
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
        """What is known: ``open`` while more seeds may be added."""
        if self.looks and self.looks[-1].crossed:
            return "decided"
        if not self.measured:
            return "not measured"
        return "undecided" if self.last else "open"

    @property
    def better(self) -> str | None:
        """The arm that was found better; None where nothing is decided."""
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
        """Whether no more seeds are wanted: nothing is open."""
        return all(decision.state != "open" for decision in self.decisions)

    def rule_told(self) -> str:
        """Return what the rule was, in one paragraph."""
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

    ``metrics`` are the keys of the primary metrics to decide (all when None). Alpha is split evenly over all primary
    metrics and arms, whatever is asked for: Bonferroni's bound holds at any look, since it adds up the chances that a
    test ever crosses. A pair (or an unpaired run) without a measured value is left out. The decisions depend on the
    runs alone, and one that was made stays when rounds are added.
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
    """Return the matched KL, nats per reply: what all but one in 2A of the first round's runs reach; NaN without KL.

    So at least half of each of the A arms' runs reach it. It takes all arms together and the first round alone, so
    that exchanging arms within a seed does not move it, nor a later round what was seen before.
    """
    runs = [summary.run for found in summaries.values() for summary in found if summary.run.seed in seeds]
    reaches = [path.reach for path in map(frontier.run_path, runs) if path.points]
    level = float(np.quantile(reaches, 0.5 / len(summaries), method="lower")) if reaches else 0.0
    return level if level > 0 else math.nan


def _first_possible(rule: Rule, share: float) -> int | None:
    """Return the number of pairs at which the rule can decide first; None where it never can."""
    ends = (group[-1] + 1 for group in rule.rounds())
    return next((n for n in ends if 2.0 ** (1 - n) <= spent_by(share, n, rule.most)), None)
