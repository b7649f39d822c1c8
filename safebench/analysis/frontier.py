"""Compute the frontier of judge reward against KL: paths of runs, arms at matched KL, best of n as reference, fits.

Best of n draws n replies to a prompt from the initial policy and keeps the reply with the highest proxy reward. It is
the reference without training on the frontier of judge reward against KL.

KL is in nats per reply: ``eval/kl`` (nats per token) times ``eval/length`` (tokens per reply). Both are ratios over the
same held-out replies, so the product is exactly the replies' summed KL divided by their number.

Gao, Schulman, Hilton 2022 (arXiv 2210.10760), section 3.1, with d = sqrt(KL(policy || first policy)) in nats per reply
and R the judge reward's gain over the first policy:

- best of n: R(d) = d (alpha - beta d),
- reinforcement learning: R(d) = d (alpha - beta log d).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safebench.analysis import statistics
from safebench.analysis.runs import Run
from safebench.analysis.statistics import Estimate
from safebench.errors import BadResource, UsageError

Array = NDArray[np.float64]
FOLDER = "best-of-n"
"""Folder of the records below a model's results; each record is a subfolder."""

COLUMNS = ("prompt", "draw", "proxy", "judge", "tokens")
MUST_MATCH = ("rollout.reply_tokens", "prompts.max_tokens", "evaluation.prompts", "model.dtype")
"""Settings that change the initial policy's replies or their prompts."""

_HINT = "`safebench report EXPERIMENT --best-of-n N` makes it anew, once the folder is moved away."


@dataclass(frozen=True)
class BestOf:
    """The best of ``n`` replies by proxy reward. ``kl`` is in nats per reply and an upper bound, see ``kl_bound``.

    Rewards are means over prompts with a t-interval over prompts; ``judge`` is None if there is no judge.
    """

    n: int
    kl: float
    proxy: Estimate
    judge: Estimate | None


@dataclass(frozen=True)
class Record:
    """A record of ``safebench report --best-of-n``: ``proxy``, ``judge`` and ``tokens`` are [prompts, draws]."""

    folder: Path
    manifest: Mapping[str, Any]
    proxy: Array
    judge: Array | None
    tokens: Array

    @property
    def prompts(self) -> int:
        """Number of held-out prompts."""
        return int(self.proxy.shape[0])

    @property
    def draws(self) -> int:
        """Number of replies drawn for each prompt."""
        return int(self.proxy.shape[1])

    @property
    def curve(self) -> tuple[BestOf, ...]:
        """Best of 1, 2, 4, ... up to the number of draws."""
        sizes = [2**k for k in range(self.draws.bit_length())]
        return tuple(best_of(self.proxy, self.judge, n) for n in sizes)


def kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n, nats per reply: an upper bound of KL(best of n || initial policy).

    Stiennon et al. 2020 (arXiv 2009.01325), Hilton & Gao 2022 ("Measuring Goodhart's law") and Gao et al. 2022
    (arXiv 2210.10760) give this expression as the KL itself. It equals the KL if no two draws tie, as with a continuous
    distribution. Sentences can be drawn twice; for them it is only an upper bound (Beirami et al. 2024,
    arXiv 2401.01879). The KL shown for best of n is therefore never too small.
    """
    if n < 1:
        raise ValueError(f"best of {n}")
    return math.log(n) - (n - 1) / n


def rank_weights(draws: int, n: int) -> Array:
    """Return [N]: the probability that the i-th smallest (i from 1) of N draws is the largest of n of them.

    This is C(i - 1, n - 1) / C(N, n), because the n - 1 others all come from the i - 1 draws below it (Hilton & Gao
    2022).
    """
    if not 1 <= n <= draws:
        raise ValueError(f"best of {n} out of {draws} draws")
    subsets = math.comb(draws, n)
    return np.array([math.comb(i - 1, n - 1) / subsets for i in range(1, draws + 1)])


def expected_best(by: Array, values: Array, n: int) -> Array:
    """Return [P]: for each prompt the mean over all subsets of n draws of the value of the draw that is best by ``by``.

    ``by`` and ``values`` are [P, N]. The result is the sum over ranks of weight times value. It equals the mean over
    every subset, so it is unbiased for best of n, and it costs one sort. Draws that tie in ``by`` share the weights of
    their ranks equally, as in a random choice among them.
    """
    weights = rank_weights(by.shape[1], n)
    return np.array([_shared(row, weights) @ value for row, value in zip(by, values, strict=True)])


def _shared(by: Array, weights: Array) -> Array:
    """Return each draw's weight: that of its rank, or the mean over the ranks of the draws that it ties with."""
    _, group, size = np.unique(by, return_inverse=True, return_counts=True)
    ends = np.cumsum(size)
    totals = np.array([weights[end - count : end].sum() for end, count in zip(ends, size, strict=True)])
    return np.asarray((totals / size)[group], dtype=np.float64)


def best_of(proxy: Array, judge: Array | None, n: int) -> BestOf:
    """Return the figures of best of n from scores [prompts, draws]."""
    judged = None if judge is None else statistics.mean(expected_best(proxy, judge, n).tolist())
    return BestOf(n, kl_bound(n), statistics.mean(expected_best(proxy, proxy, n).tolist()), judged)


def read_record(folder: Path) -> Record:
    """Return the record in ``folder``; raise ``BadResource`` if it is unfinished or damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError) as error:
        raise BadResource(f"{folder} is no record of best of n: {error}", _HINT) from error
    shape = int(manifest.get("prompts", 0)), int(manifest.get("draws", 0))
    if not manifest.get("complete"):
        raise BadResource(
            f"{folder} is not finished", "Call `safebench report EXPERIMENT --best-of-n N` again: it goes on."
        )
    keys = [[str(p), str(d)] for p in range(shape[0]) for d in range(shape[1])]
    if tuple(header) != COLUMNS or [row[:2] for row in rows] != keys or any(len(row) != len(COLUMNS) for row in rows):
        raise BadResource(f"{folder / 'scores.csv'} has not the {shape[0]} x {shape[1]} rows it should", _HINT)
    try:
        proxy, judge, tokens = (
            np.array([float(row[k] or "nan") for row in rows]).reshape(shape) for k in range(2, len(COLUMNS))
        )
    except ValueError as error:
        raise BadResource(f"{folder / 'scores.csv'} is damaged: {error}", _HINT) from error
    if not np.isfinite(proxy).all() or (np.isfinite(judge).any() and not np.isfinite(judge).all()):
        raise BadResource(f"{folder / 'scores.csv'} lacks scores", _HINT)
    return Record(folder, manifest, proxy, judge if np.isfinite(judge).all() else None, tokens)


def records(runs: Sequence[Run]) -> list[Path]:
    """Return the folders of the records below the results of the same models as ``runs``."""
    places = dict.fromkeys(run.folder.parents[1] / FOLDER for run in runs)
    return [path.parent for place in places for path in sorted(place.glob("*/manifest.json"))]


def unfit(record: Record, runs: Sequence[Run]) -> str | None:
    """Return why the record is no reference for ``runs``; None if files, prompts and reply lengths are the same."""
    for run in runs:
        hashes, mine = run.manifest.get("hashes", {}), record.manifest.get("hashes", {})
        for key in ("model", "reward", "judge", "prompts"):
            if hashes.get(key) != mine.get(key):
                return f"its {key} has another hash than that of {run.variant} seed {run.seed}"
        for key in MUST_MATCH:
            section, _, name = key.partition(".")
            wanted, found = run.settings.get(section, {}).get(name), record.manifest.get("settings", {}).get(key)
            if wanted != found:
                return f"its {key} is {found}, that of {run.variant} seed {run.seed} {wanted}"
    return None


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
    """One evaluation step over the seeds that measured it: means with t-intervals; ``kl.n`` is the number of seeds."""

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

    The level is passed between the evaluations ``start`` and ``end``. If it is never passed, ``judge`` is NaN and both
    are None.
    """

    judge: float
    start: Point | None = None
    end: Point | None = None

    @property
    def gap(self) -> float:
        """KL between the two evaluations, nats per reply; NaN if the level is never reached."""
        return math.nan if self.start is None or self.end is None else self.end.kl - self.start.kl


@dataclass(frozen=True)
class Level:
    """Arms at one KL, nats per reply: judge reward by arm, and each arm's difference to the baseline.

    ``passages`` are by arm and seed. ``reference`` is best of n's judge reward at this KL by linear interpolation along
    its curve. It is NaN beyond the curve or without a curve.
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
    """All data of the frontier.

    ``best_of_n`` is the curve of ``record``. It is empty if there is no record; ``refused`` then gives the reason.
    ``notes`` are remarks that a reader must know.
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

    By default, the levels of matched KL are the quarters of the reach, each rounded down to two digits. For each arm,
    take the median over its seeds of the largest KL of any evaluation; the reach is the smallest of these medians. At
    least half of every arm's seeds therefore get to the last level, and neither an arm whose KL keeps growing nor a run
    that broke off at once sets the scale.
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
    """Return the KL levels at which ``arms`` are compared, by the rule stated in ``frontier``; empty without KL."""
    reach = min((float(np.median([path.reach for path in arm.paths])) for arm in arms), default=0.0)
    return tuple(_rounded_down(share * reach) for share in QUARTERS) if reach > 0.0 else ()


def matched_level(groups: Groups) -> float:
    """Return the KL at which these arms are compared: the last level that ``frontier`` chooses; NaN without KL."""
    arms = [ArmPaths(arm, paths, ()) for arm, runs in groups.items() if (paths := _paths(runs))]
    levels = levels_of(arms)
    return levels[-1] if levels else math.nan


def judge_at(run: Run, level: float) -> float:
    """Return the judge reward of a run at first passage of ``level``, nats per reply; NaN if it never gets there."""
    return passage(run_path(run), level).judge


def passage(path: RunPath, level: float) -> Passage:
    """Return the first passage of ``level`` along the path, linear between evaluations that have a judge reward.

    On a path that begins beyond the level, the passage was not observed: it is missing, as on a path that never reaches
    the level.
    """
    points = [point for point in path.points if math.isfinite(point.judge)]
    for start, end in pairwise(points):
        if start.kl > level:  # only possible at the first point: later points would have passed it
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
    """Return ``value`` rounded down to two significant digits: a run that reaches ``value`` also reaches the result."""
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
        return statistics.unpaired(list(second.values()), list(first.values()))
    both = [seed for seed in second if seed in first]
    return statistics.paired([second[seed] for seed in both], [first[seed] for seed in both])


def _reference(kl: float, curve: Sequence[BestOf]) -> float:
    judged = [(best.kl, best.judge.value) for best in curve if best.judge is not None]
    if not judged or kl > judged[-1][0]:
        return math.nan
    return float(np.interp(kl, [point[0] for point in judged], [point[1] for point in judged]))


def _record(runs: Sequence[Run]) -> tuple[Record | None, str]:
    """Return the matching record with the most draws, or None and the reason."""
    fit: list[Record] = []
    reasons = []
    for folder in records(runs):
        try:
            record = read_record(folder)
        except BadResource as error:
            reasons.append(str(error))
            continue
        reason = unfit(record, runs)
        if reason is None:
            fit.append(record)
        else:
            reasons.append(f"{folder.name}: {reason}")
    if fit:
        return max(fit, key=lambda record: record.draws), ""
    return None, "; ".join(reasons) or "none was made: `safebench report --best-of-n 64` makes it"


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
    """Compare the runs' first evaluation, one reply to a prompt, with the initial policy's mean over many draws.

    A seed has the same evaluation noise in every arm, so this noise does not differ between arms.
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


FEWEST = 3
"""Minimum number of points beyond the first policy's for a fit of two numbers, so that residuals remain."""


@dataclass(frozen=True)
class Coefficients:
    """A fit of one curve: ``alpha`` and ``beta`` in judge reward per sqrt(nat), ``rest`` the residuals' RMS."""

    alpha: float
    beta: float
    rest: float


@dataclass(frozen=True)
class ArmFit:
    """An arm's fits: means over its seeds with t-intervals.

    ``peak`` is the KL at the maximum of the fitted curve, nats per reply: the median over the seeds whose curve has a
    maximum, NaN if none has.
    """

    arm: str
    alpha: Estimate
    beta: Estimate
    rest: Estimate
    peak: float


def fit_training(kl: Array, gain: Array) -> Coefficients:
    """Return the least-squares fit of R(d) = d (alpha - beta log d) to ``gain`` [n] at ``kl`` [n] > 0."""
    d = np.sqrt(kl)
    return _least_squares(np.stack([d, -d * np.log(d)], axis=1), gain)


def fit_best_of_n(kl: Array, gain: Array) -> Coefficients:
    """Return the least-squares fit of R(d) = d (alpha - beta d) to ``gain`` [n] at ``kl`` [n] > 0."""
    d = np.sqrt(kl)
    return _least_squares(np.stack([d, -d * d], axis=1), gain)


def peak_of_training(found: Coefficients) -> float:
    """Return the KL at the maximum of a fitted training curve, d = exp(alpha / beta - 1); NaN if it has no maximum.

    The maximum is at dR/dd = alpha - beta (log d + 1) = 0.
    """
    return math.exp(2 * (found.alpha / found.beta - 1)) if found.beta > 0 else math.nan


def arm_fit(arm: ArmPaths) -> ArmFit | None:
    """Return an arm's fits; None if no seed has enough evaluations beyond the first policy's."""
    fits = [found for path in arm.paths if (found := path_fit(path)) is not None]
    if not fits:
        return None
    peaks = [top for found in fits if math.isfinite(top := peak_of_training(found))]
    alpha, beta = statistics.mean([found.alpha for found in fits]), statistics.mean([found.beta for found in fits])
    return ArmFit(arm.arm, alpha, beta, statistics.mean([found.rest for found in fits]), _median(peaks))


def path_fit(path: RunPath) -> Coefficients | None:
    """Return the fit of one run's evaluations; None without the first policy's, or with fewer than FEWEST others."""
    points = [point for point in path.points if math.isfinite(point.judge)]
    if not points or points[0].kl > 0.0:
        return None
    after = [point for point in points[1:] if point.kl > 0.0]
    if len(after) < FEWEST:
        return None
    return fit_training(np.array([p.kl for p in after]), np.array([p.judge - points[0].judge for p in after]))


def curve_fit(curve: Sequence[BestOf]) -> Coefficients | None:
    """Return the fit of best of n, from best of 2 on; None without a judge or with fewer than FEWEST points."""
    judged = [(best.kl, best.judge.value) for best in curve if best.judge is not None]
    if len(judged) <= FEWEST:
        return None
    kl, judge = (np.array(column) for column in zip(*judged, strict=True))
    return fit_best_of_n(kl[1:], judge[1:] - judge[0])


def _least_squares(design: Array, values: Array) -> Coefficients:
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    rest = design @ solution - values
    return Coefficients(float(solution[0]), float(solution[1]), float(np.sqrt(np.mean(rest**2))))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan
