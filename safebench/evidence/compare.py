"""Arms side by side: means with intervals, paired differences to the first, exact tests, and what was not equal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from safebench.errors import ComparisonRefused, UsageError
from safebench.evidence import fairness, frontier, independent, replicates, statistics
from safebench.evidence.across import across_rows
from safebench.evidence.crashes import SPEC, CrashSpec
from safebench.evidence.fairness import Unequal
from safebench.evidence.notes import footers, loud_warnings
from safebench.evidence.rows import Row, crash_rows, known, pairs, scalar_rows
from safebench.evidence.runs import Run
from safebench.evidence.scalars import SCALARS, Scalar
from safebench.evidence.statistics import Estimate
from safebench.evidence.stopping import Stopping
from safebench.evidence.summary import Summary, summarise

Groups = Mapping[str, Sequence[Run]]

BOOTSTRAP_SEED = 0


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
    bootstrap: Estimate | None = None
    """BCa interval of the paired difference, from eight pairs on."""


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
    stopping: Stopping | None = None
    """The rule by which seeds were added, and its decisions; the tests' p-values are not valid then."""
    replicated: bool = False
    """Rows say what rounding alone moves."""

    @property
    def unpaired(self) -> tuple[str, ...]:
        """Arms with runs whose randomness is not ours: no difference to them is by seed."""
        return tuple(a for a, found in self.summaries.items() if not all(summary.run.paired for summary in found))

    def paired(self, arm: str) -> bool:
        """Whether the arm's differences to the baseline are by seed."""
        return not {arm, self.baseline} & {*self.unpaired}

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
    again: Groups | None = None,
) -> Comparison:
    """Compare the arms of ``groups`` (name -> runs) on ``seeds`` (default: all that any arm has).

    ``again`` are replicates by arm: they say what rounding alone moves, and are in no other figure.

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
    summaries, level = at_matched_kl(summaries)
    rows: tuple[Row, ...] = (
        *scalar_rows(summaries, arms),
        *across_rows(summaries, arms, spec),
        *crash_rows(summaries, arms, spec),
    )
    tests = _tests(rows, arms, summaries)
    unequal = fairness.differences(chosen)
    warned, told = loud_warnings(summaries, unequal, unmatched), footers(summaries, wanted, spec)
    if again is not None:
        rounded = {arm: tuple(summarise(run, spec) for run in again.get(arm, ()) if run.seed in wanted) for arm in arms}
        rounded = _at_level(rounded, level)
        rows = replicates.with_rounding(rows, summaries, rounded, arms, spec)
        warned, told = (*warned, *replicates.warnings(summaries, rounded)), (*told, *replicates.told(rounded))
    return Comparison(
        arms=arms,
        baseline=arms[0],
        seeds=tuple(wanted),
        rows=rows,
        tests=tests,
        fairness=unequal,
        warnings=warned,
        footers=(*told, *_level_told(level, summaries)),
        unmatched=tuple(unmatched),
        summaries=summaries,
        spec=spec,
        replicated=again is not None,
    )


def _ordered(groups: Groups, baseline: str | None) -> tuple[str, ...]:
    if not groups:
        raise UsageError("nothing to compare", "Name at least one experiment that has runs.")
    first = baseline if baseline is not None else next(iter(groups))
    if first not in groups:
        raise UsageError(f"the baseline {first!r} is not among {', '.join(groups)}", "Name one of these.")
    return (first, *(arm for arm in groups if arm != first))


def at_matched_kl(summaries: Mapping[str, Sequence[Summary]]) -> tuple[dict[str, tuple[Summary, ...]], float]:
    """Fill in judge reward at matched KL, and return the level in nats per reply: the frontier's last (NaN: none)."""
    level = frontier.matched_level({arm: [summary.run for summary in found] for arm, found in summaries.items()})
    return _at_level(summaries, level), level


def _at_level(summaries: Mapping[str, Sequence[Summary]], level: float) -> dict[str, tuple[Summary, ...]]:
    def filled(summary: Summary) -> Summary:
        return replace(summary, values={**summary.values, "judge_matched": frontier.judge_at(summary.run, level)})

    return {arm: tuple(filled(summary) for summary in found) for arm, found in summaries.items()}


def _level_told(level: float, summaries: Mapping[str, Sequence[Summary]]) -> tuple[str, ...]:
    if math.isnan(level):
        return ()
    missing = [
        f"{arm} seed {', '.join(map(str, seeds))}"
        for arm, found in summaries.items()
        if (seeds := [s.run.seed for s in found if math.isnan(s.values["judge_matched"])])
    ]
    told = f"; not reached by {'; '.join(missing)}" if missing else ""
    return (f"matched KL: {level:g} nats per reply, which at least half of every arm's seeds reach{told}",)


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
            _bootstrap(row, arm, arms[0]),
        )
        for arm in arms[1:]
        for row in primary
    )


def _bootstrap(row: Row, arm: str, first: str) -> Estimate | None:
    both = pairs(row.cells[arm].values, row.cells[first].values)
    if row.kind != "mean" or row.differences[arm].method != statistics.PAIRED or len(both) < 8:
        return None
    return statistics.bca([second - base for second, base in both], np.random.default_rng(BOOTSTRAP_SEED))


def _improvement(row: Row, arm: str, first: str) -> float:
    sign = -1.0 if row.scalar.direction == "down" else 1.0
    second, base = ([sign * value for value in known(row.cells[name].values)] for name in (arm, first))
    return independent.probability_of_improvement(second, base)
