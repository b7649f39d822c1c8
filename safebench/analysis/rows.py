"""Build the rows of a comparison: a cell per arm, and the difference of every other arm to the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from safebench.analysis import scalars, statistics
from safebench.analysis.scalars import SCALARS, Scalar, Summary, training
from safebench.analysis.statistics import Estimate
from safebench.crashes.detect import SCALES, CrashSpec

Summaries = Mapping[str, Sequence[Summary]]
BySeed = Mapping[int, float]
RowKind = Literal["mean", "across", "share", "time", "count"]

CRASH_RATE = Scalar("crash_rate", "crash rate", "share of runs", "down", "runs with a harm at scale 1", primary=True)
FIRST_CRASH = Scalar("first_crash", "first crash", "step", "up", "start of the first harm; median by Kaplan-Meier")


@dataclass(frozen=True)
class Cell:
    """One arm's figure in one row.

    ``values`` are by seed. NaN means not measured, and no crash in a ``time`` row. An ``across`` row has no values. A
    ``count`` row has ``counts``: the episodes over all runs that were watched for this kind, at each of SCALES, empty
    if no run was watched. Its ``values`` are each run's episodes at scale 1.
    """

    estimate: Estimate
    values: BySeed
    counts: tuple[int, ...] = ()

    @property
    def hit(self) -> int:
        """Number of runs with a value above zero."""
        return sum(value > 0 for value in self.values.values())


@dataclass(frozen=True)
class Rounding:
    """The change of a metric of ``n`` seeds by another order of sums, in the metric's unit.

    ``each`` is the mean over the seeds of |replicate − original|, ``mean`` the size of the mean difference; NaN if not
    measured.
    """

    each: float
    mean: float
    n: int


@dataclass(frozen=True)
class Row:
    """One metric over all arms; ``differences`` are to the baseline, by arm, if one is defined.

    ``rounding`` is by arm, if replicates were requested and rounding affects the metric.
    """

    scalar: Scalar
    kind: RowKind
    cells: Mapping[str, Cell]
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    rounding: Mapping[str, Rounding] = field(default_factory=dict)


def scalar_rows(summaries: Summaries, arms: Sequence[str]) -> list[Row]:
    """Return a row for every scalar that any run has."""
    rows = []
    for scalar in SCALARS:
        values = {arm: {s.run.seed: s.values[scalar.key] for s in summaries[arm]} for arm in arms}
        if any(math.isfinite(value) for by_seed in values.values() for value in by_seed.values()):
            cells = {arm: Cell(statistics.mean(known(values[arm])), values[arm]) for arm in arms}
            rows.append(Row(scalar, "mean", cells, _differences(values, summaries, arms)))
    return rows


def crash_rows(summaries: Summaries, arms: Sequence[str], spec: CrashSpec) -> list[Row]:
    """Return the crash rate, the first crash, and a row for every kind that any run had at any scale, harms first."""
    crashed = {arm: {s.run.seed: float(s.crashed) for s in summaries[arm]} for arm in arms}
    shares = {arm: statistics.clopper_pearson(int(sum(v.values())), len(v)) for arm, v in crashed.items()}
    cells = {arm: Cell(shares[arm], crashed[arm]) for arm in arms}
    differences = _differences(crashed, summaries, arms)
    exact = {arm: _share_difference(found, crashed[arm], crashed[arms[0]]) for arm, found in differences.items()}
    rate = Row(CRASH_RATE, "share", cells, exact)
    first = Row(FIRST_CRASH, "time", {arm: _first_crash(summaries[arm]) for arm in arms})
    seen = [
        kind
        for kind in (*spec.harms, *spec.alarms)
        if any(summary.count(kind, scale) for found in summaries.values() for summary in found for scale in SCALES)
    ]
    return [rate, first, *(_count_row(_counted(kind, spec), kind, summaries, arms) for kind in seen)]


def _count_row(scalar: Scalar, kind: str, summaries: Summaries, arms: Sequence[str]) -> Row:
    cells = {arm: _counts(summaries[arm], kind) for arm in arms}
    differences = _differences({arm: cell.values for arm, cell in cells.items()}, summaries, arms)
    return Row(scalar, "count", cells, {arm: _count_difference(found) for arm, found in differences.items()})


def _counted(kind: str, spec: CrashSpec) -> Scalar:
    label = f"{kind} (alarm)" if kind in spec.alarms else kind
    return Scalar(f"crash/{kind}", label, "episodes", "down", f"episodes of {kind} over all runs, at each scale")


def _counts(summaries: Sequence[Summary], kind: str) -> Cell:
    watched = [summary for summary in summaries if summary.watched(kind)]
    values = {s.run.seed: float(s.count(kind)) if s.watched(kind) else math.nan for s in summaries}
    totals = tuple(sum(summary.count(kind, scale) for summary in watched) for scale in SCALES) if watched else ()
    return Cell(statistics.mean(known(values)), values, totals)


def _first_crash(summaries: Sequence[Summary]) -> Cell:
    seen = [summary.first_crash is not None for summary in summaries]
    times = [float(s.run.last_step if s.first_crash is None else s.first_crash) for s in summaries]
    values = {s.run.seed: math.nan if s.first_crash is None else float(s.first_crash) for s in summaries}
    median = statistics.median_survival(times, seen)
    return Cell(Estimate(median, math.nan, math.nan, len(times), "Kaplan-Meier median"), values)


def _differences(values: Mapping[str, BySeed], summaries: Summaries, arms: Sequence[str]) -> dict[str, Estimate]:
    first, *others = arms
    return {arm: difference(values[arm], values[first], _paired(summaries, arm, first)) for arm in others}


def difference(second: BySeed, first: BySeed, paired: bool) -> Estimate:
    """Return the difference of two arms' values, by seed if they are paired, else of independent samples."""
    if not paired:
        return statistics.unpaired(known(second), known(first))
    both = pairs(second, first)
    return statistics.paired([pair[0] for pair in both], [pair[1] for pair in both])


def pairs(second: BySeed, first: BySeed) -> list[tuple[float, float]]:
    """Return the pairs of finite values of the seeds that both arms have."""
    both = [(value, first.get(seed, math.nan)) for seed, value in second.items()]
    return [pair for pair in both if all(map(math.isfinite, pair))]


def _share_difference(found: Estimate, second: BySeed, first: BySeed) -> Estimate:
    if found.method == statistics.PAIRED:
        return _bare(found, "sign-flip", found.p)
    return statistics.newcombe(int(sum(second.values())), len(second), int(sum(first.values())), len(first))


def _count_difference(found: Estimate) -> Estimate:
    if found.method == statistics.PAIRED:
        return _bare(found, "sign-flip", found.p)
    return _bare(found, "permutation", found.p)


def _bare(found: Estimate, method: str, p: float) -> Estimate:
    """Return the difference with its exact p-value only: a t-interval of few zeros and ones is not informative."""
    return replace(found, low=math.nan, high=math.nan, method=method, p=p, detectable=math.nan)


def _paired(summaries: Summaries, arm: str, first: str) -> bool:
    return all(summary.run.paired for name in (arm, first) for summary in summaries[name])


def known(values: BySeed) -> list[float]:
    """Return the values that were measured."""
    return [value for value in values.values() if math.isfinite(value)]


DISPERSION = Scalar(
    "across_dispersion",
    "dispersion across runs",
    "σ₀",
    "down",
    "interquartile range over runs of the smoothed reward/mean, mean over the steps that all have",
)
RISK = Scalar("across_risk", "risk across runs", "reward", "up", "mean of the 5 % worst final rewards")
WORST = Scalar("across_risk", "final reward, worst run", "reward", "up", "with few runs, their risk is the worst one's")


def across_rows(summaries: Mapping[str, Sequence[Summary]], arms: Sequence[str], spec: CrashSpec) -> list[Row]:
    """Return dispersion and risk across runs (Chan et al. 2020) of each arm; a row that no arm has is left out.

    If the risk is the worst run in every arm, as below 21 runs, the label of the row says so.
    """
    spread = {arm: _cell(_dispersion(summaries[arm], spec), len(summaries[arm]), "IQR over runs") for arm in arms}
    risks = {arm: scalars.risk_across_runs([s.values["final_reward"] for s in summaries[arm]]) for arm in arms}
    worst = all(smallest for _, smallest in risks.values())
    cells = {arm: _cell(value, len(summaries[arm]), "CVaR over runs") for arm, (value, _) in risks.items()}
    rows = [Row(DISPERSION, "across", spread), Row(WORST if worst else RISK, "across", cells)]
    return [row for row in rows if any(math.isfinite(cell.estimate.value) for cell in row.cells.values())]


def _dispersion(found: Sequence[Summary], spec: CrashSpec) -> float:
    """Return the dispersion with one sigma_0 for all runs: comparable runs share initial policy and held-out sample."""
    sigmas = [summary.run.sigma0 for summary in found]
    if not found or not all(sigmas):
        return math.nan
    curves = [training(summary.run, "reward/mean") for summary in found]
    return scalars.dispersion_across_runs(curves, sum(filter(None, sigmas)) / len(sigmas), spec.smoothing_span)


def _cell(value: float, runs: int, method: str) -> Cell:
    return Cell(Estimate(value, math.nan, math.nan, runs, method), {})
