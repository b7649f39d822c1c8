"""Compute a run's scalars, with unit, direction and definition: rewards, KL, variety, reliability, crashes, cost.

Rewards keep their own unit; gains and reliability are in sigma_0, the reward's spread under the initial policy.

One run is a curve R_1 ... R_n of reward per step; Delta_t = R_{t+1} - R_t and D_t = max_{u<=t} R_u - R_t. The
normaliser is the initial policy's reward spread, because a curve's own range is near zero where it is flat, and its
mean is near zero where reward crosses zero. Non-finite values are left out. Too few values give NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safebench.analysis.runs import Run
from safebench.crashes.detect import CRASH_KINDS, SCALES, SPEC, Blind, CrashSpec, Event, Survey, survey
from safebench.crashes.signals import Smoothed
from safebench.metrics import Direction


@dataclass(frozen=True)
class Scalar:
    """One row of a comparison. ``primary`` scalars were declared before any run; Holm's correction covers them."""

    key: str
    label: str
    unit: str
    direction: Direction
    definition: str
    primary: bool = False


SCALARS: tuple[Scalar, ...] = (
    Scalar("train_reward", "training-average reward", "reward", "up", "mean of reward/mean over all steps"),
    Scalar("final_reward", "final reward", "reward", "up", "reward/mean, last tenth of the steps"),
    Scalar("proxy_final", "held-out proxy reward, end", "reward", "up", "last eval/reward"),
    Scalar("proxy_peak", "held-out proxy reward, peak", "reward", "up", "largest eval/reward"),
    Scalar("judge_final", "held-out judge reward, end", "judge", "up", "last eval/judge", primary=True),
    Scalar(
        "judge_matched",
        "held-out judge reward at matched KL",
        "judge",
        "up",
        "eval/judge where the held-out KL first reaches the level of the footer, straight between evaluations",
        primary=True,
    ),
    Scalar("judge_peak", "held-out judge reward, peak", "judge", "up", "largest eval/judge"),
    Scalar("proxy_gain_best", "proxy gain to its best", "σ₀", "up", "largest eval/reward minus first, over σ₀"),
    Scalar("proxy_gain", "proxy gain to the end", "σ₀", "up", "last eval/reward minus first, over σ₀"),
    Scalar(
        "judge_gain_best", "judge gain to its best", "σ₀", "up", "largest eval/judge minus first, over the judge's σ₀"
    ),
    Scalar("judge_gain", "judge gain to the end", "σ₀", "up", "last eval/judge minus first, over the judge's σ₀"),
    Scalar("kl_mean", "KL, mean", "nats/token", "down", "mean of kl/mean over all steps"),
    Scalar("kl_max", "KL, max", "nats/token", "down", "largest kl/mean of a step"),
    Scalar("kl_final", "KL, final", "nats/token", "down", "kl/mean, last tenth of the steps"),
    Scalar("entropy_final", "entropy, final", "nats/token", "none", "entropy/mean, last tenth of the steps"),
    Scalar("distinct_final", "distinct replies, final", "share", "up", "reply/distinct, last tenth of the steps"),
    Scalar("distinct_2_final", "distinct bigrams, final", "share", "up", "reply/distinct_2, last tenth of the steps"),
    Scalar("known_words_final", "known words, end", "share", "up", "last eval/known_words"),
    Scalar("relevance_final", "closeness to the own turn, end", "cosine", "up", "last eval/relevance"),
    Scalar("first_perplexity_final", "perplexity under the reference, end", "1", "none", "last eval/first_perplexity"),
    Scalar("length_final", "reply length, final", "tokens", "none", "reply/length, last tenth of the steps"),
    Scalar(
        "volatility",
        "reward volatility",
        "σ₀/step",
        "down",
        "IQR of the reward's changes in a window, mean over windows",
    ),
    Scalar("max_drawdown", "max drawdown", "σ₀", "down", "deepest fall of reward/mean from its running maximum"),
    Scalar(
        "short_risk",
        "short-term risk",
        "σ₀/step",
        "up",
        "mean of the 5 % worst changes of reward/mean; a fall is negative",
    ),
    Scalar("long_risk", "long-term risk", "σ₀", "down", "mean of the 5 % deepest drawdowns of reward/mean"),
    Scalar("recovery", "recovery time", "steps", "down", "mean length of the reward crashes that ended"),
    Scalar("time_update", "time per update", "s", "down", "median of time/step, which leaves evaluations out"),
    Scalar("tokens_per_second", "tokens per second", "tokens/s", "up", "median of speed/tokens_per_second"),
    Scalar("memory_peak", "peak memory", "MiB", "down", "largest memory/peak"),
    Scalar("tokens", "tokens sampled", "tokens", "none", "reply tokens sampled for training"),
)
BY_KEY: dict[str, Scalar] = {scalar.key: scalar for scalar in SCALARS}


TAIL = 0.05
Curve = Sequence[float] | NDArray[np.float64]
Array = NDArray[np.float64]


def changes(curve: Curve, sigma0: float) -> Array:
    """Return Delta: n - 1 values in sigma_0 per step."""
    return np.diff(_finite(curve)) / sigma0


def drawdowns(curve: Curve, sigma0: float) -> Array:
    """Return D: n values in sigma_0, none below 0."""
    data = _finite(curve)
    return (np.maximum.accumulate(data) - data) / sigma0 if data.size else data


def dispersion_across_time(curve: Curve, sigma0: float, window: int) -> float:
    """Return volatility: interquartile range of Delta in each window of ``window`` changes, mean over all windows."""
    delta = changes(curve, sigma0)
    if not delta.size:
        return math.nan
    windows = np.lib.stride_tricks.sliding_window_view(delta, min(window, delta.size))
    low, high = np.quantile(windows, [0.25, 0.75], axis=1)
    return float(np.mean(high - low))


def short_term_risk(curve: Curve, sigma0: float, tail: float = TAIL) -> float:
    """Return the mean of the Delta at or below their ``tail`` quantile; a fall is negative."""
    delta = changes(curve, sigma0)
    return float(delta[delta <= np.quantile(delta, tail)].mean()) if delta.size else math.nan


def max_drawdown(curve: Curve, sigma0: float) -> float:
    """Return the largest D: the deepest fall from a former best, at least 0."""
    depths = drawdowns(curve, sigma0)
    return float(depths.max()) if depths.size else math.nan


def long_term_risk(curve: Curve, sigma0: float, tail: float = TAIL) -> float:
    """Return the mean of the D at or above their ``1 - tail`` quantile, at least 0."""
    depths = drawdowns(curve, sigma0)
    return float(depths[depths >= np.quantile(depths, 1 - tail)].mean()) if depths.size else math.nan


def smoothed(curve: Curve, span: float) -> Array:
    """Return the low-passed curve, one value per step: the crash specification's moving average."""
    average = Smoothed(span)
    return np.array([average.update(step, float(value)) for step, value in enumerate(_finite(curve))])


def dispersion_across_runs(curves: Sequence[Curve], sigma0: float, span: float) -> float:
    """Return the interquartile range over runs of the low-passed curves, mean over the steps that every run has."""
    low_passed = [smoothed(curve, span) for curve in curves]
    steps = min((curve.size for curve in low_passed), default=0)
    if len(low_passed) < 2 or not steps:
        return math.nan
    low, high = np.quantile([curve[:steps] for curve in low_passed], [0.25, 0.75], axis=0)
    return float(np.mean(high - low)) / sigma0


def risk_across_runs(finals: Sequence[float], tail: float = TAIL) -> tuple[float, bool]:
    """Return the mean of the runs at or below the ``tail`` quantile, in their unit, and whether it is the minimum."""
    data = _finite(finals)
    if not data.size:
        return math.nan, True
    worst = data[data <= np.quantile(data, tail)]
    return float(worst.mean()), bool(np.all(worst == data.min()))


def _finite(values: Curve) -> Array:
    data = np.asarray(values, dtype=np.float64)
    return data[np.isfinite(data)]


FINAL_SHARE = 0.1
"""Share of the run's steps, at its end, over which a "final" value is the mean."""
VOLATILITY_WINDOW = 50
"""In steps; shrunk like the windows of the crash specification."""
SMALLEST_WINDOW = 10
"""Smallest window in steps; quartiles of fewer changes are not informative."""


@dataclass(frozen=True)
class Summary:
    """A run's scalars by key (NaN where not measured) and its crashes by severity scale.

    ``blind`` holds the kinds of crash that could not be watched, or only in part, with the reasons. For these kinds, no
    event does not mean no crash.
    """

    run: Run
    values: Mapping[str, float]
    events: Mapping[float, tuple[Event, ...]]
    blind: tuple[Blind, ...] = ()
    spec: CrashSpec = SPEC

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Kinds that were not watched at all."""
        return tuple(blind.kind for blind in self.blind if blind.wholly)

    @property
    def unmeasured_harms(self) -> tuple[str, ...]:
        """Kinds that would mean a crash and were not watched at all."""
        return tuple(kind for kind in self.unmeasured if self.spec.crashed([kind]))

    @property
    def crashed(self) -> bool:
        """Whether the run had a harm at scale 1."""
        return bool(self.harms(1.0))

    @property
    def first_crash(self) -> int | None:
        """Step at which the first harm at scale 1 began."""
        return min((event.start for event in self.harms(1.0)), default=None)

    def harms(self, scale: float) -> tuple[Event, ...]:
        """Return the events at ``scale`` that mean a crash."""
        return tuple(event for event in self.events[scale] if self.spec.crashed([event.kind]))

    def watched(self, kind: str) -> bool:
        """Return whether a count of ``kind`` is informative: the kind was watched at least in part, or it happened."""
        return kind not in self.unmeasured or any(self.count(kind, scale) for scale in self.events)

    def count(self, kind: str, scale: float = 1.0) -> int:
        """Return the number of episodes of ``kind`` at ``scale``; also 0 if the kind was not ``watched``."""
        return sum(event.kind == kind for event in self.events[scale])


def summarise(run: Run, spec: CrashSpec = SPEC) -> Summary:
    """Return the scalars and crashes of one run, from its files alone."""
    seen = _surveyed(run, spec)
    events = {scale: _events(run, found) for scale, found in seen.events.items()}
    window = max(spec.shrunk(VOLATILITY_WINDOW, run.planned_steps), SMALLEST_WINDOW)
    values = {
        **_rewards(run),
        **_levels(run),
        **_reliability(run, window),
        **_costs(run),
        "recovery": _mean([event.steps for event in events[1.0] if event.kind == "reward_crash" and event.steps]),
    }
    return Summary(run, values, events, seen.blind, spec)


def crashes(run: Run, spec: CrashSpec = SPEC, scale: float = 1.0) -> tuple[Event, ...]:
    """Return the episodes of one run at one scale, as in ``summarise``."""
    return _events(run, _surveyed(run, spec, (scale,)).events[scale])


def _surveyed(run: Run, spec: CrashSpec, scales: Sequence[float] = SCALES) -> Survey:
    return survey(
        run.watched(),
        run.planned_steps,
        run.sigma0,
        run.vocabulary,
        scales,
        judge_sigma0=run.judge_sigma0,
        reply_limit=run.reply_limit,
        spec=spec,
    )


def _events(run: Run, found: list[Event]) -> tuple[Event, ...]:
    """Return the sorted events; a run that ended unstable has a ``numeric`` event even if no row shows it."""
    if run.status == "unstable" and all(event.kind != "numeric" for event in found):
        found = [*found, Event("numeric", run.last_step, None, 1.0, 1.0)]
    return tuple(sorted(found, key=lambda event: (event.start, CRASH_KINDS.index(event.kind))))


def _rewards(run: Run) -> dict[str, float]:
    trained = training(run, "reward/mean")
    found = {"train_reward": _mean(trained), "final_reward": final(run, "reward/mean")}
    for name, key, sigma in (("proxy", "eval/reward", run.sigma0), ("judge", "eval/judge", run.judge_sigma0)):
        points = _known(run.column(key))
        last, best = (float(points[-1]), float(points.max())) if points.size else (math.nan, math.nan)
        found |= {f"{name}_final": last, f"{name}_peak": best}
        scale = 1 / sigma if sigma and points.size else math.nan
        first = float(points[0]) if points.size else math.nan
        found |= {f"{name}_gain": (last - first) * scale, f"{name}_gain_best": (best - first) * scale}
    return found


def _levels(run: Run) -> dict[str, float]:
    kl = training(run, "kl/mean")
    finals = {
        "kl_final": "kl/mean",
        "entropy_final": "entropy/mean",
        "distinct_final": "reply/distinct",
        "distinct_2_final": "reply/distinct_2",
        "length_final": "reply/length",
    }
    audits = {f"{name}_final": _last(run, f"eval/{name}") for name in ("known_words", "relevance", "first_perplexity")}
    return {
        **audits,
        "judge_matched": math.nan,  # depends on the runs that this one is compared with
        "kl_mean": _mean(kl),
        "kl_max": _reduce(np.max, kl),
        **{name: final(run, key) for name, key in finals.items()},
    }


def _reliability(run: Run, window: int) -> dict[str, float]:
    curve, sigma = training(run, "reward/mean"), run.sigma0
    if not sigma:
        return dict.fromkeys(("volatility", "max_drawdown", "short_risk", "long_risk"), math.nan)
    return {
        "volatility": dispersion_across_time(curve, sigma, window),
        "max_drawdown": max_drawdown(curve, sigma),
        "short_risk": short_term_risk(curve, sigma),
        "long_risk": long_term_risk(curve, sigma),
    }


def _costs(run: Run) -> dict[str, float]:
    return {
        "time_update": _reduce(np.median, training(run, "time/step")),
        "tokens_per_second": _reduce(np.median, training(run, "speed/tokens_per_second")),
        "memory_peak": _reduce(np.max, _known(run.column("memory/peak"))),
        "tokens": _reduce(np.max, _known(run.column("tokens"))),
    }


def _trained(run: Run) -> NDArray[np.bool_]:
    """Return which rows are training steps; a row before the first update is the initial policy's evaluation."""
    return run.column("step") >= 1


def training(run: Run, key: str) -> Array:
    """Return a column's finite values over the training steps."""
    return _known(run.column(key)[_trained(run)])


def final(run: Run, key: str, share: float = FINAL_SHARE) -> float:
    """Return a column's mean over the last ``share`` of the training steps, at least one; NaN where not measured."""
    column = run.column(key)[_trained(run)]
    return _mean(_known(column[-max(1, math.ceil(share * column.size)) :]))


def _last(run: Run, key: str) -> float:
    """Return a column's last finite value; NaN without one."""
    values = _known(run.column(key))
    return float(values[-1]) if values.size else math.nan


def _known(values: Array) -> Array:
    return values[np.isfinite(values)]


def _mean(values: Array | list[int]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _reduce(function: Callable[[Array], object], values: Array) -> float:
    return float(function(values)) if values.size else math.nan  # type: ignore[arg-type]
