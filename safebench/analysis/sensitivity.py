"""Recompute the result for every alternative of each choice of the evidence, with all other choices as chosen.

Everything is recomputed from the run folders. A variant changes either which runs crashed (thresholds, windows,
smoothing) or a difference between the arms and its p-value (normaliser, pairing, interval, correction).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import special

from safebench.analysis import frontier, scalars, statistics
from safebench.analysis.runs import Run
from safebench.analysis.scalars import FINAL_SHARE, SMALLEST_WINDOW, VOLATILITY_WINDOW, Array, crashes, final, training
from safebench.analysis.statistics import Estimate
from safebench.crashes.detect import CRASH_KINDS, SCALES, SPEC, CrashSpec, Event
from safebench.errors import UsageError

CRASHED = "crashed"
SIGN = "the sign of the difference"
WINDOWED = ("reward", "runaway", "entropy", "degenerate", "length", "value")
Figure = Callable[[Run], float]
Pair = tuple[Sequence[Run], Sequence[Run]]
Hits = Mapping[str, tuple[int, int]]
Kinds = frozenset[str]


@dataclass(frozen=True)
class Variant:
    """One choice at one value; ``chosen`` is True for the value that the comparison uses.

    ``hits`` counts runs of the first arm and of the second: those that ``crashed``, and those with an event of each
    kind that some value of this choice finds. It is None if the choice does not affect crashes. ``difference`` is
    second minus first of ``metric``, with the interval and the p-value of this variant.
    """

    choice: str
    value: str
    chosen: bool
    runs: tuple[int, int]
    hits: Hits | None = None
    metric: str = ""
    difference: Estimate | None = None
    flips: tuple[str, ...] = field(default=())
    """Results of the chosen value that this variant reverses, in words; empty if there are none."""


def sensitivity(groups: Mapping[str, Sequence[Run]], spec: CrashSpec = SPEC) -> list[Variant]:
    """Return every choice at every value, including the chosen one, for the second arm against the first.

    ``groups`` holds two arms, the baseline first, one run per seed. If the arms are paired, only seeds that both have
    are used. Raises ``UsageError`` for another number of arms, or for paired arms with no seed in common.
    """
    pair = _pair(groups)
    variants = [*_crash_choices(pair, spec), *_figure_choices(pair), *_statistic_choices(pair, spec)]
    chosen = {(variant.choice, variant.metric): variant for variant in variants if variant.chosen}
    return [replace(v, flips=_flips(v, chosen[v.choice, v.metric], tuple(groups))) for v in variants]


def _pair(groups: Mapping[str, Sequence[Run]]) -> Pair:
    if len(groups) != 2:
        raise UsageError(f"sensitivity compares two arms, not {len(groups)}", "Name the baseline and one other.")
    first, second = ({run.seed: run for run in runs} for runs in groups.values())
    everything = (list(first.values()), list(second.values()))
    if not _paired(everything) and all(everything):
        return everything
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise UsageError(f"{' and '.join(groups)} have no seed in common", "Make runs of the same seeds (--run).")
    return [first[seed] for seed in seeds], [second[seed] for seed in seeds]


def _crash_choices(pair: Pair, spec: CrashSpec) -> list[Variant]:
    windows = {name: [f"{part}_window" for part in WINDOWED] for name in ("half", "double")}
    half, double = (
        {name: max(1, round(factor * getattr(spec, name))) for name in windows["half"]} for factor in (0.5, 2)
    )
    choices: dict[str, dict[str, dict[str, Any]]] = {
        "smoothing span": {f"{span} steps": {"smoothing_span": float(span)} for span in (10, 20, 40)},
        "length of windows": {"half": half, "as specified": {}, "double": double},
        "windows in short runs": {"shrunk": {}, "not shrunk": {"full_length": 1}},
        "history of kl_spike": {f"{steps} steps": {"spike_history": steps} for steps in (50, 100, 200)},
        "factor of kl_spike": {f"{factor:g}": {"spike_factor": factor} for factor in (2.5, 5.0, 10.0)},
        "floor of kl_spike": {f"{floor:g} nats": {"spike_floor": floor} for floor in (0.25, 0.5, 1.0)},
        "KL target": {f"{target:g} nats": {"kl_target": target} for target in (0.15, 0.3, 0.6)},
        "judge points": {f"{points}": {"judge_points": points} for points in (1, 2, 3)},
    }
    found = [
        variant
        for choice, values in choices.items()
        for variant in _crashed(
            choice, pair, {value: (replace(spec, **changes), 1.0) for value, changes in values.items()}, spec
        )
    ]
    return _crashed("severity", pair, {f"{scale:g}×": (spec, scale) for scale in SCALES}, spec) + found


def _crashed(choice: str, pair: Pair, values: Mapping[str, tuple[CrashSpec, float]], spec: CrashSpec) -> list[Variant]:
    events = {
        value: tuple([_kinds(crashes(run, changed, scale)) for run in runs] for runs in pair)
        for value, (changed, scale) in values.items()
    }
    seen = {kind for arms in events.values() for runs in arms for run in runs for kind in run}
    kinds = [kind for kind in CRASH_KINDS if kind in seen]
    return [
        Variant(choice, value, values[value] == (spec, 1.0), _sizes(pair), hits=_hits(arms[0], arms[1], kinds, spec))
        for value, arms in events.items()
    ]


def _hits(first: Sequence[Kinds], second: Sequence[Kinds], kinds: Sequence[str], spec: CrashSpec) -> Hits:
    def count(runs: Sequence[Kinds], kind: str) -> int:
        return sum(spec.crashed(run) if kind == CRASHED else kind in run for run in runs)

    return {kind: (count(first, kind), count(second, kind)) for kind in (CRASHED, *kinds)}


def _kinds(events: Sequence[Event]) -> Kinds:
    return frozenset(event.kind for event in events)


def _figure_choices(pair: Pair) -> Iterator[Variant]:
    judge = "held-out judge reward"
    judged: dict[str, Figure] = {
        "end": lambda run: _judge(run, lambda points: points[-1]),
        "peak": lambda run: _judge(run, np.max),
        "mean of all points after the first": lambda run: _judge(run, lambda points: np.mean(points[1:]), 2),
    }
    yield from _figures("judge figure", judge, pair, judged, "end")
    for key, metric in (("reward/mean", "final reward"), ("kl/mean", "KL, final")):
        shares: dict[str, Figure] = {
            f"{share:.0%}": lambda run, key=key, share=share: final(run, key, share)  # type: ignore[misc]
            for share in (0.05, 0.1, 0.2)
        }
        yield from _figures("final share", metric, pair, shares, f"{FINAL_SHARE:.0%}")
    windows: dict[str, Figure] = {
        f"{window} steps": lambda run, window=window: _volatility(run, _sigma(run), window)  # type: ignore[misc]
        for window in (25, 50, 100)
    }
    yield from _figures("window of volatility", "reward volatility", pair, windows, f"{VOLATILITY_WINDOW} steps")
    norms: dict[str, Figure] = {"σ₀": _sigma, "each run's own range": _range, "none": lambda run: 1.0}
    measures: dict[str, Callable[[Run, float], float]] = {
        "reward volatility": lambda run, norm: _volatility(run, norm, VOLATILITY_WINDOW),
        "max drawdown": lambda run, norm: scalars.max_drawdown(training(run, "reward/mean"), norm),
    }
    for metric, measure in measures.items():
        figures: dict[str, Figure] = {
            name: lambda run, measure=measure, norm=norm: measure(run, norm(run))  # type: ignore[misc]
            for name, norm in norms.items()
        }
        yield from _figures("normaliser", metric, pair, figures, "σ₀")


def _figures(choice: str, metric: str, pair: Pair, figures: Mapping[str, Figure], chosen: str) -> Iterator[Variant]:
    for value, figure in figures.items():
        found = _compared(pair, *_measured(pair, figure))
        yield Variant(choice, value, value == chosen, _sizes(pair), metric=metric, difference=found)


def _statistic_choices(pair: Pair, spec: CrashSpec) -> Iterator[Variant]:
    level = frontier.matched_level({"first": pair[0], "second": pair[1]})
    primary: dict[str, Figure] = {
        "held-out judge reward, end": lambda run: _judge(run, lambda points: points[-1]),
        "held-out judge reward at matched KL": lambda run: frontier.judge_at(run, level),
    }
    made = {}
    for metric, figure in primary.items():
        first, second = _measured(pair, figure)
        made[metric] = _compared(pair, first, second)
        unpaired = statistics.unpaired(second, first)
        if _paired(pair):  # unpaired arms have no pairs
            yield Variant("pairing", "paired by seed", True, _sizes(pair), metric=metric, difference=made[metric])
        yield Variant(
            "pairing", "unpaired (Welch)", not _paired(pair), _sizes(pair), metric=metric, difference=unpaired
        )
        tested = (
            _intervals(made[metric], np.subtract(second, first)) if _paired(pair) else _welch(unpaired, first, second)
        )
        for rank, (value, found) in enumerate(tested.items()):
            yield Variant("test", value, rank == 0, _sizes(pair), metric=metric, difference=found)
    made["crash rate"] = _crash_rate(pair, spec)
    raw = {metric: found.p for metric, found in made.items()}
    corrected = {
        "Holm": statistics.holm(raw, len(raw)),
        "none": raw,
        "Bonferroni": {metric: p if math.isnan(p) else min(1.0, len(raw) * p) for metric, p in raw.items()},
    }
    for metric, found in made.items():
        for value, adjusted in corrected.items():
            shown = replace(found, p=adjusted[metric])
            yield Variant("correction", value, value == "Holm", _sizes(pair), metric=metric, difference=shown)


def _compared(pair: Pair, first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return the difference as the comparison computes it: paired if the arms are paired."""
    return statistics.paired(second, first) if _paired(pair) else statistics.unpaired(second, first)


def _crash_rate(pair: Pair, spec: CrashSpec) -> Estimate:
    """Return the difference of the crash rates with its exact p: a t-interval of zeros and ones means little."""
    first, second = ([float(spec.crashed(_kinds(crashes(run, spec)))) for run in runs] for runs in pair)
    if not _paired(pair):
        return statistics.newcombe(int(sum(second)), len(second), int(sum(first)), len(first))
    return replace(statistics.paired(second, first), low=math.nan, high=math.nan)


def _paired(pair: Pair) -> bool:
    return all(run.paired for runs in pair for run in runs)


def _intervals(paired: Estimate, differences: Array) -> dict[str, Estimate]:
    """Return the t-interval with the sign-flip p (as chosen), with the t-test's p, and the percentile bootstrap."""
    size, low, high, t_test = differences.size, math.nan, math.nan, math.nan
    if size > 1:
        error = float(differences.std(ddof=1)) / math.sqrt(size)
        t_test = float(2 * special.stdtr(size - 1, -abs(paired.value) / error)) if error > 0 else math.nan
        drawn = differences[np.random.default_rng(0).integers(0, size, (10_000, size))].mean(axis=1)
        low, high = (float(edge) for edge in np.quantile(drawn, [0.025, 0.975]))
    return {
        "t-interval, sign-flip p": paired,
        "t-interval, t-test's p": replace(paired, p=t_test),
        "percentile bootstrap, sign-flip p": replace(paired, low=low, high=high, method="percentile bootstrap"),
    }


def _welch(unpaired: Estimate, first: Sequence[float], second: Sequence[float]) -> dict[str, Estimate]:
    """Return Welch's interval with the permutation test's p (as chosen), and with Welch's own."""
    parts = [float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else math.nan for values in (first, second)]
    error, p = math.sqrt(sum(parts)), math.nan
    if error > 0:
        sizes = (len(first), len(second))
        freedom = sum(parts) ** 2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
        p = float(2 * special.stdtr(freedom, -abs(unpaired.value) / error))
    return {"Welch's interval, permutation p": unpaired, "Welch's interval, Welch's t-test's p": replace(unpaired, p=p)}


def _flips(variant: Variant, chosen: Variant, arms: tuple[str, ...]) -> tuple[str, ...]:
    """Return what ``variant`` reverses: the arm ahead, whether zero is in the interval, whether p is below 5 %."""
    found = []
    if variant.hits is not None and chosen.hits is not None:
        for kind in chosen.hits:
            ours, theirs = (np.sign(hits[kind][1] - hits[kind][0]) for hits in (variant.hits, chosen.hits))
            if ours != theirs:
                found.append(f"{kind}: {_ahead(float(theirs), arms)} becomes {_ahead(float(ours), arms)}")
    if variant.difference is not None and chosen.difference is not None:
        ours, theirs = variant.difference, chosen.difference
        if ours.value * theirs.value < 0:
            found.append(SIGN)
        if _excludes_zero(ours) != _excludes_zero(theirs):
            found.append(f"the interval {'no longer has' if _excludes_zero(ours) else 'now has'} zero in it")
        if (ours.p < statistics.ALPHA) != (theirs.p < statistics.ALPHA):
            found.append(f"p is {'below' if ours.p < statistics.ALPHA else 'not below'} {statistics.ALPHA:g}")
    return tuple(found)


def _ahead(sign: float, arms: tuple[str, ...]) -> str:
    return {0.0: "equal", 1.0: f"more in {arms[1]}"}.get(sign, f"more in {arms[0]}")


def _excludes_zero(estimate: Estimate) -> bool:
    return estimate.low > 0 or estimate.high < 0


def _measured(pair: Pair, figure: Figure) -> tuple[list[float], list[float]]:
    """Return both arms' figures; if the arms are paired, only for the seeds in which both were measured."""
    if not _paired(pair):
        first, second = ([value for value in map(figure, runs) if math.isfinite(value)] for runs in pair)
        return first, second
    both = [(figure(first), figure(second)) for first, second in zip(*pair, strict=True)]
    kept = [values for values in both if all(map(math.isfinite, values))]
    return [first for first, _ in kept], [second for _, second in kept]


def _judge(run: Run, reduce: Callable[[Array], object], least: int = 1) -> float:
    column = run.column("eval/judge")
    points = column[np.isfinite(column)]
    return float(reduce(points)) if points.size >= least else math.nan  # type: ignore[arg-type]


def _volatility(run: Run, norm: float, window: int) -> float:
    size = max(SPEC.shrunk(window, run.planned_steps), SMALLEST_WINDOW)
    return scalars.dispersion_across_time(training(run, "reward/mean"), norm, size)


def _sigma(run: Run) -> float:
    return run.sigma0 or math.nan


def _range(run: Run) -> float:
    curve = training(run, "reward/mean")
    return float(np.ptp(curve)) or math.nan if curve.size else math.nan


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else math.nan


def _sizes(pair: Pair) -> tuple[int, int]:
    return len(pair[0]), len(pair[1])
