"""The frontier of judge reward against KL: paths of runs, arms at matched KL, best of n as the reference.

KL is in nats per reply: ``eval/kl`` (nats per token) times ``eval/length`` (tokens per reply). Both are ratios over
the same held-out replies, so the product is exactly the replies' summed KL over their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from safebench.errors import BadResource, UsageError
from safebench.evidence import best_of_n, independent, statistics
from safebench.evidence.best_of_n import BestOf, Record
from safebench.evidence.runs import Run
from safebench.evidence.statistics import Estimate

Groups = Mapping[str, Sequence[Run]]

QUARTERS = (0.25, 0.5, 0.75, 1.0)
"""Levels of matched KL, as shares of the reach."""


@dataclass(frozen=True)
class Point:
    """One evaluation: KL in nats per reply, judge and proxy reward in their own units (NaN: not measured)."""

    step: int
    kl: float
    judge: float
    proxy: float


@dataclass(frozen=True)
class RunPath:
    """One run's evaluations with a measured KL, in the order of their steps."""

    seed: int
    points: tuple[Point, ...]

    @property
    def reach(self) -> float:
        """Largest KL of any evaluation, nats per reply; 0 without one."""
        return max((point.kl for point in self.points), default=0.0)


@dataclass(frozen=True)
class MeanPoint:
    """One evaluation step over the seeds that measured it: means with t-intervals; ``kl.n`` says how many seeds."""

    step: int
    kl: Estimate
    judge: Estimate
    proxy: Estimate


@dataclass(frozen=True)
class ArmPaths:
    """One arm: a path per seed, and their mean at every step that any of them evaluated."""

    arm: str
    paths: tuple[RunPath, ...]
    mean: tuple[MeanPoint, ...]


@dataclass(frozen=True)
class Passage:
    """First passage of a KL level by one run: judge reward there, by linear interpolation between two evaluations.

    The level is passed between the evaluations ``start`` and ``end``. Where it never is, ``judge`` is NaN and both are
    None.
    """

    judge: float
    start: Point | None = None
    end: Point | None = None

    @property
    def gap(self) -> float:
        """KL between the two evaluations, nats per reply; NaN where the level is never reached."""
        return math.nan if self.start is None or self.end is None else self.end.kl - self.start.kl


@dataclass(frozen=True)
class Level:
    """Arms at one KL, nats per reply: judge reward by arm, and each arm's difference to the baseline.

    ``passages`` are by arm and seed. ``reference`` is best of n's judge reward at this KL by linear interpolation along
    its curve, NaN beyond the curve or without one.
    """

    kl: float
    passages: Mapping[str, Mapping[int, Passage]]
    judge: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    reference: float = math.nan

    def missing(self, arm: str) -> tuple[int, ...]:
        """Return the seeds of ``arm`` that never reach this level."""
        return tuple(seed for seed, passage in self.passages[arm].items() if math.isnan(passage.judge))


@dataclass(frozen=True)
class Frontier:
    """Everything the frontier shows.

    ``best_of_n`` is the curve of ``record``, empty where ``refused`` says why there is none; ``notes`` are what a
    reader must know.
    """

    baseline: str
    arms: tuple[ArmPaths, ...]
    levels: tuple[Level, ...]
    best_of_n: tuple[BestOf, ...]
    record: Record | None
    refused: str
    notes: tuple[str, ...]


def frontier(groups: Groups, *, baseline: str | None = None, levels: Sequence[float] | None = None) -> Frontier:
    """Return the frontier of ``groups`` (arm -> runs), all on one model, reward, judge and prompts.

    Levels of matched KL, unless given, are the quarters of the reach: for each arm the median over its seeds of the
    largest KL of any evaluation, the smallest of these over the arms, each quarter rounded down to two digits. So at
    least half of every arm's seeds get to the last level, and neither an arm that goes on for ever nor a run that broke
    at once sets the scale.
    """
    first = next(iter(groups), "") if baseline is None else baseline
    if first not in groups:
        raise UsageError(f"the baseline {first!r} is not among {', '.join(groups)}", "Name one of these.")
    arms = tuple(ArmPaths(arm, paths, _mean(paths)) for arm, runs in groups.items() if (paths := _paths(runs)))
    record, refused = _record([run for runs in groups.values() for run in runs])
    curve = record.curve if record else ()
    paired = {arm: all(run.paired for run in (*runs, *groups[first])) for arm, runs in groups.items()}
    chosen = levels_of(arms) if levels is None else tuple(levels)
    matched = tuple(_level(kl, arms, first, paired, curve) for kl in chosen)
    notes = (*_notes(matched, curve), *_luck(arms, record))
    return Frontier(first, arms, matched, curve, record, refused, notes)


def run_path(run: Run) -> RunPath:
    """Return the path of one run: every evaluation whose KL was measured."""
    keys = ("eval/kl", "eval/length", "eval/judge", "eval/reward")
    per_token, length, judge, proxy = (run.column(key) for key in keys)
    kl, steps = per_token * length, run.column("step")
    measured = np.flatnonzero(np.isfinite(kl))
    return RunPath(
        run.seed, tuple(Point(int(steps[i]), float(kl[i]), float(judge[i]), float(proxy[i])) for i in measured)
    )


def levels_of(arms: Sequence[ArmPaths]) -> tuple[float, ...]:
    """Return the KL levels at which ``arms`` are compared, by the rule that ``frontier`` states; none without KL."""
    reach = min((float(np.median([path.reach for path in arm.paths])) for arm in arms), default=0.0)
    return tuple(_rounded_down(share * reach) for share in QUARTERS) if reach > 0.0 else ()


def matched_level(groups: Groups) -> float:
    """Return the KL at which these arms are compared: the last level that ``frontier`` chooses; NaN without KL."""
    arms = [ArmPaths(arm, paths, ()) for arm, runs in groups.items() if (paths := _paths(runs))]
    levels = levels_of(arms)
    return levels[-1] if levels else math.nan


def judge_at(run: Run, level: float) -> float:
    """Return the judge reward of a run at first passage of ``level``, nats per reply; NaN where it never gets there."""
    return passage(run_path(run), level).judge


def passage(path: RunPath, level: float) -> Passage:
    """Return the first passage of ``level`` along the path, straight between evaluations that the judge has seen.

    A path that begins beyond the level has passed it unseen: missing, as one that never gets there.
    """
    points = [point for point in path.points if math.isfinite(point.judge)]
    for start, end in pairwise(points):
        if start.kl > level:  # only ever of the first point: later ones would have passed it
            break
        if level <= end.kl:
            share = (level - start.kl) / (end.kl - start.kl) if end.kl > start.kl else 0.0
            return Passage(start.judge + share * (end.judge - start.judge), start, end)
    return Passage(math.nan)


def _paths(runs: Sequence[Run]) -> tuple[RunPath, ...]:
    paths = (run_path(run) for run in sorted(runs, key=lambda run: run.seed))
    return tuple(path for path in paths if path.points)


def _mean(paths: Sequence[RunPath]) -> tuple[MeanPoint, ...]:
    steps = sorted({point.step for path in paths for point in path.points})
    return tuple(_mean_at(step, [p for path in paths for p in path.points if p.step == step]) for step in steps)


def _mean_at(step: int, points: Sequence[Point]) -> MeanPoint:
    columns = ([point.kl for point in points], [point.judge for point in points], [point.proxy for point in points])
    return MeanPoint(step, *(statistics.mean([x for x in column if math.isfinite(x)]) for column in columns))


def _rounded_down(value: float) -> float:
    """Return ``value`` cut to two significant digits, never more than it: who reaches the one reaches the other."""
    digits = 1 - math.floor(math.log10(value))
    return min(value, math.floor(value * 10.0**digits) / 10.0**digits)


def _level(
    kl: float, arms: Sequence[ArmPaths], first: str, paired: Mapping[str, bool], curve: Sequence[BestOf]
) -> Level:
    passages = {arm.arm: {path.seed: passage(path, kl) for path in arm.paths} for arm in arms}
    known = {
        arm: {seed: found.judge for seed, found in by_seed.items() if math.isfinite(found.judge)}
        for arm, by_seed in passages.items()
    }
    judge = {arm: statistics.mean(list(by_seed.values())) for arm, by_seed in known.items()}
    differences = {
        arm: _difference(by_seed, known[first], paired[arm])
        for arm, by_seed in known.items()
        if arm != first and first in known
    }
    return Level(kl, passages, judge, differences, _reference(kl, curve))


def _difference(second: Mapping[int, float], first: Mapping[int, float], paired: bool) -> Estimate:
    if not paired:
        return independent.unpaired(list(second.values()), list(first.values()))
    both = [seed for seed in second if seed in first]
    return statistics.paired([second[seed] for seed in both], [first[seed] for seed in both])


def _reference(kl: float, curve: Sequence[BestOf]) -> float:
    judged = [(best.kl, best.judge.value) for best in curve if best.judge is not None]
    if not judged or kl > judged[-1][0]:
        return math.nan
    return float(np.interp(kl, [point[0] for point in judged], [point[1] for point in judged]))


def _record(runs: Sequence[Run]) -> tuple[Record | None, str]:
    """Return the matching record with the most draws, or why there is none."""
    fit: list[Record] = []
    reasons = []
    for folder in best_of_n.records(runs):
        try:
            record = best_of_n.read(folder)
        except BadResource as error:
            reasons.append(str(error))
            continue
        reason = best_of_n.unfit(record, runs)
        if reason is None:
            fit.append(record)
        else:
            reasons.append(f"{folder.name}: {reason}")
    if fit:
        return max(fit, key=lambda record: record.draws), ""
    return None, "; ".join(reasons) or "none was made: `safebench best-of-n` makes it"


def _notes(levels: Sequence[Level], curve: Sequence[BestOf]) -> tuple[str, ...]:
    notes = []
    for level in levels:
        for arm in level.passages:
            if missing := level.missing(arm):
                seeds = ", ".join(map(str, missing))
                notes.append(f"KL {level.kl:g}: no evaluation of {arm} seed {seeds} gets there, left out at this level")
    gaps = [found.gap for level in levels for by_seed in level.passages.values() for found in by_seed.values()]
    if gaps := [gap for gap in gaps if math.isfinite(gap)]:
        notes.append(
            "between two evaluations the judge is taken as straight in KL; they are up to "
            f"{max(gaps):.1f} nats per reply apart where a level is passed"
        )
    if curve and levels and levels[0].kl > curve[-1].kl:
        notes.append(
            f"best of {curve[-1].n} ends at {curve[-1].kl:.1f} nats per reply, before the first level: "
            "at no level can an arm be held against it"
        )
    return tuple(notes)


def _luck(arms: Sequence[ArmPaths], record: Record | None) -> list[str]:
    """Hold the runs' first evaluation, one reply to a prompt, against the initial policy's mean over many draws.

    A seed has the same evaluation noise in every arm: its luck is no difference between arms.
    """
    starts = [p.judge for arm in arms for path in arm.paths for p in path.points if p.step == 0 and p.kl == 0.0]
    if record is None or record.judge is None or record.draws < 2 or not starts:
        return []
    draws = record.judge.mean(axis=0)
    return [
        f"the initial policy's judge reward is {draws.mean():.3f} over {record.draws} replies to each prompt; "
        f"one reply to each, as in an evaluation, scatters about it by {draws.std(ddof=1):.3f} (standard deviation), "
        f"and the runs' first evaluations drew {np.mean(starts):.3f} on average"
    ]
