"""One run becomes its scalars: rewards, KL, variety, reliability, crashes, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safebench.evidence import reliability
from safebench.evidence.crashes import CRASH_KINDS, SCALES, SPEC, Blind, CrashSpec, Event, Survey, survey
from safebench.evidence.runs import Run

Array = NDArray[np.float64]
FINAL_SHARE = 0.1
"""Share of the run's steps, at its end, that a "final" value is the mean of."""
VOLATILITY_WINDOW = 50
"""Steps, shrunk as the crash specification's windows are."""
SMALLEST_WINDOW = 10
"""Steps below which quartiles of a window's changes say nothing."""


@dataclass(frozen=True)
class Summary:
    """A run's scalars by key (NaN where not measured) and its crashes by severity scale.

    ``blind`` has the kinds of crash that could not be watched, or only in part, with the reasons: of
    these, no event does not mean no crash.
    """

    run: Run
    values: Mapping[str, float]
    events: Mapping[float, tuple[Event, ...]]
    blind: tuple[Blind, ...] = ()
    spec: CrashSpec = SPEC

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Kinds of which nothing was watched."""
        return tuple(blind.kind for blind in self.blind if blind.wholly)

    @property
    def unmeasured_harms(self) -> tuple[str, ...]:
        """Kinds that would mean a crash and of which nothing was watched."""
        return tuple(kind for kind in self.unmeasured if self.spec.crashed([kind]))

    @property
    def crashed(self) -> bool:
        """Whether the run was harmed at scale 1."""
        return bool(self.harms(1.0))

    @property
    def first_crash(self) -> int | None:
        """Step at which the first harm at scale 1 began."""
        return min((event.start for event in self.harms(1.0)), default=None)

    def harms(self, scale: float) -> tuple[Event, ...]:
        """Return the events at ``scale`` that mean a crash."""
        return tuple(event for event in self.events[scale] if self.spec.crashed([event.kind]))

    def watched(self, kind: str) -> bool:
        """Whether a count of ``kind`` says something: it was watched at least in part, or happened."""
        return kind not in self.unmeasured or any(self.count(kind, scale) for scale in self.events)

    def count(self, kind: str, scale: float = 1.0) -> int:
        """Episodes of ``kind`` at ``scale``; 0 also where it was not ``watched``."""
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
    """Return the episodes of one run at one scale, as ``summarise`` has them."""
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
    """Add what the file cannot show: a run that ended unstable has crashed even if no row says so."""
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
        "volatility": reliability.dispersion_across_time(curve, sigma, window),
        "max_drawdown": reliability.max_drawdown(curve, sigma),
        "short_risk": reliability.short_term_risk(curve, sigma),
        "long_risk": reliability.long_term_risk(curve, sigma),
    }


def _costs(run: Run) -> dict[str, float]:
    return {
        "time_update": _reduce(np.median, training(run, "time/step")),
        "tokens_per_second": _reduce(np.median, training(run, "speed/tokens_per_second")),
        "memory_peak": _reduce(np.max, _known(run.column("memory/peak"))),
        "tokens": _reduce(np.max, _known(run.column("tokens"))),
    }


def _trained(run: Run) -> NDArray[np.bool_]:
    """Rows of training steps: one before the first update is the initial policy's evaluation."""
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
