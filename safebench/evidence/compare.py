"""Arms side by side: means with intervals, paired differences to the first, exact tests, and what was not equal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from safebench.errors import ComparisonRefused, UsageError
from safebench.evidence import fairness, statistics
from safebench.evidence.crashes import CRASH_KINDS, SCALES, SPEC, CrashSpec
from safebench.evidence.fairness import Unequal
from safebench.evidence.notes import footers, loud_warnings
from safebench.evidence.runs import Run
from safebench.evidence.scalars import SCALARS, Scalar
from safebench.evidence.statistics import Estimate
from safebench.evidence.summary import Summary, summarise

Groups = Mapping[str, Sequence[Run]]
RowKind = Literal["mean", "share", "time", "count"]

CRASH_RATE = Scalar("crash_rate", "crash rate", "share of runs", "down", "runs with any event at scale 1", primary=True)
FIRST_CRASH = Scalar("first_crash", "first crash", "step", "up", "start of the first event; median by Kaplan-Meier")


@dataclass(frozen=True)
class Cell:
    """One arm's figure in one row.

    ``values`` are by seed (NaN: not measured; in a ``time`` row: none). A ``count`` row has ``counts``, the
    episodes over all runs at each of SCALES, and its ``values`` are each run's episodes at scale 1.
    """

    estimate: Estimate
    values: Mapping[int, float]
    counts: tuple[int, ...] = ()

    @property
    def hit(self) -> int:
        """Runs with a value above zero."""
        return sum(value > 0 for value in self.values.values())


@dataclass(frozen=True)
class Row:
    """One metric over all arms; ``differences`` are to the baseline, by arm, where one is defined."""

    scalar: Scalar
    kind: RowKind
    cells: Mapping[str, Cell]
    differences: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Test:
    """One primary metric of one arm against the baseline. ``adjusted`` is Holm's p over all of the table's tests."""

    __test__ = False  # the name is statistics', not a test runner's

    scalar: Scalar
    arm: str
    difference: Estimate
    adjusted: float
    improvement: float
    """Probability that a run of the arm is better than one of the baseline, ties half."""


@dataclass(frozen=True)
class Comparison:
    """Everything a table says. ``unmatched`` is why it should have been refused, where it was forced."""

    arms: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    tests: tuple[Test, ...]
    fairness: tuple[Unequal, ...]
    warnings: tuple[str, ...]
    footers: tuple[str, ...]
    unmatched: tuple[str, ...]
    summaries: Mapping[str, tuple[Summary, ...]]
    spec: CrashSpec

    def row(self, key: str) -> Row:
        """Return the row of one scalar; KeyError where the table has none."""
        for row in self.rows:
            if row.scalar.key == key:
                return row
        raise KeyError(key)


def compare(
    groups: Groups,
    *,
    baseline: str | None = None,
    seeds: Iterable[int] | None = None,
    force: bool = False,
    spec: CrashSpec = SPEC,
) -> Comparison:
    """Compare the arms of ``groups`` (name -> runs) on ``seeds`` (default: all that any arm has).

    The first arm, or ``baseline``, is what the others are held against. Raises ``ComparisonRefused`` with
    every reason where arms are unmatched, unless ``force``, which marks the result instead.
    """
    arms = _ordered(groups, baseline)
    wanted = sorted({run.seed for runs in groups.values() for run in runs} if seeds is None else set(seeds))
    chosen = {arm: [run for run in groups[arm] if run.seed in wanted] for arm in arms}
    unmatched = fairness.mismatches(chosen, wanted)
    doubled = any(len({run.seed for run in runs}) < len(runs) for runs in chosen.values())
    if unmatched and (not force or doubled or not all(chosen.values())):
        raise ComparisonRefused(
            "these runs cannot be compared:\n" + "\n".join(f"- {reason}" for reason in unmatched),
            "Make the runs that are missing (--run), or choose --seeds that every arm has; --force compares what is "
            "there and marks it. Several runs of one seed, or none at all, cannot be forced.",
        )
    summaries = {arm: tuple(summarise(run, spec) for run in runs) for arm, runs in chosen.items()}
    rows = (*_scalar_rows(summaries, arms), *_crash_rows(summaries, arms))
    tests = _tests(rows, arms, summaries)
    unequal = fairness.differences(chosen)
    return Comparison(
        arms=arms,
        baseline=arms[0],
        seeds=tuple(wanted),
        rows=rows,
        tests=tests,
        fairness=unequal,
        warnings=loud_warnings(summaries, unequal, unmatched),
        footers=footers(summaries, wanted, spec),
        unmatched=tuple(unmatched),
        summaries=summaries,
        spec=spec,
    )


def _ordered(groups: Groups, baseline: str | None) -> tuple[str, ...]:
    if not groups:
        raise UsageError("nothing to compare", "Name at least one experiment that has runs.")
    first = baseline if baseline is not None else next(iter(groups))
    if first not in groups:
        raise UsageError(f"the baseline {first!r} is not among {', '.join(groups)}", "Name one of these.")
    return (first, *(arm for arm in groups if arm != first))


def _scalar_rows(summaries: Mapping[str, Sequence[Summary]], arms: Sequence[str]) -> list[Row]:
    rows = []
    for scalar in SCALARS:
        values = {arm: {s.run.seed: s.values[scalar.key] for s in summaries[arm]} for arm in arms}
        if any(math.isfinite(value) for by_seed in values.values() for value in by_seed.values()):
            cells = {arm: Cell(statistics.mean(_known(values[arm])), values[arm]) for arm in arms}
            rows.append(Row(scalar, "mean", cells, _differences(values, summaries, arms)))
    return rows


def _crash_rows(summaries: Mapping[str, Sequence[Summary]], arms: Sequence[str]) -> list[Row]:
    crashed = {arm: {s.run.seed: float(s.crashed) for s in summaries[arm]} for arm in arms}
    shares = {arm: statistics.clopper_pearson(int(sum(v.values())), len(v)) for arm, v in crashed.items()}
    rate = Row(
        CRASH_RATE,
        "share",
        {arm: Cell(shares[arm], crashed[arm]) for arm in arms},
        {arm: _shares(difference, crashed, arm, arms[0]) for arm, difference in _differences(crashed, summaries, arms).items()},
    )  # fmt: skip
    first = Row(FIRST_CRASH, "time", {arm: _first_crash(summaries[arm]) for arm in arms})
    kinds = [
        Row(_counted(kind), "count", {arm: _counts(summaries[arm], kind) for arm in arms})
        for kind in CRASH_KINDS
        if any(summary.count(kind, scale) for found in summaries.values() for summary in found for scale in SCALES)
    ]
    return [rate, first, *kinds]


def _counted(kind: str) -> Scalar:
    return Scalar(f"crash/{kind}", kind, "episodes", "down", f"episodes of {kind} over all runs, at each scale")


def _counts(summaries: Sequence[Summary], kind: str) -> Cell:
    values = {summary.run.seed: float(summary.count(kind)) for summary in summaries}
    totals = tuple(sum(summary.count(kind, scale) for summary in summaries) for scale in SCALES)
    return Cell(statistics.mean(list(values.values())), values, totals)


def _first_crash(summaries: Sequence[Summary]) -> Cell:
    seen = [summary.first_crash is not None for summary in summaries]
    times = [float(s.run.last_step if s.first_crash is None else s.first_crash) for s in summaries]
    values = {s.run.seed: math.nan if s.first_crash is None else float(s.first_crash) for s in summaries}
    median = statistics.median_survival(times, seen)
    return Cell(Estimate(median, math.nan, math.nan, len(times), "Kaplan-Meier median"), values)


def _differences(
    values: Mapping[str, Mapping[int, float]], summaries: Mapping[str, Sequence[Summary]], arms: Sequence[str]
) -> dict[str, Estimate]:
    first, *others = arms
    return {arm: _difference(values[arm], values[first], _paired(summaries, arm, first)) for arm in others}


def _difference(second: Mapping[int, float], first: Mapping[int, float], paired: bool) -> Estimate:
    if not paired:
        return statistics.unpaired(_known(second), _known(first))
    common = [
        seed for seed, value in second.items() if math.isfinite(value) and math.isfinite(first.get(seed, math.nan))
    ]
    return statistics.paired([second[seed] for seed in common], [first[seed] for seed in common])


def _shares(difference: Estimate, crashed: Mapping[str, Mapping[int, float]], arm: str, first: str) -> Estimate:
    """A t-interval of zeros and ones means nothing: keep the difference and an exact p-value only."""
    p = difference.p
    if difference.method == "Welch":
        a, b = crashed[arm], crashed[first]
        p = statistics.fisher(int(sum(a.values())), len(a), int(sum(b.values())), len(b))
    return replace(difference, low=math.nan, high=math.nan, p=p, detectable=math.nan)


def _paired(summaries: Mapping[str, Sequence[Summary]], arm: str, first: str) -> bool:
    return all(summary.run.paired for name in (arm, first) for summary in summaries[name])


def _tests(rows: Sequence[Row], arms: Sequence[str], summaries: Mapping[str, Sequence[Summary]]) -> tuple[Test, ...]:
    primary = [row for row in rows if row.scalar.primary]
    made = {f"{row.scalar.key} {arm}": row.differences[arm].p for row in primary for arm in arms[1:]}
    declared = 1 + sum(scalar.primary for scalar in SCALARS)
    adjusted = statistics.holm(made, family=declared * (len(arms) - 1) or None)
    return tuple(
        Test(
            row.scalar,
            arm,
            row.differences[arm],
            adjusted[f"{row.scalar.key} {arm}"],
            _improvement(row, arm, arms[0]),
        )
        for arm in arms[1:]
        for row in primary
    )


def _improvement(row: Row, arm: str, first: str) -> float:
    sign = -1.0 if row.scalar.direction == "down" else 1.0
    second, base = ([sign * value for value in _known(row.cells[name].values)] for name in (arm, first))
    return statistics.probability_of_improvement(second, base)


def _known(values: Mapping[int, float]) -> list[float]:
    return [value for value in values.values() if math.isfinite(value)]
