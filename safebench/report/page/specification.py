"""The crash specification as a table of words and numbers, for runs of one length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from safebench.evidence.crashes import SCALES, CrashSpec

UNITS = {
    "numeric": "non-finite values",
    "reward_crash": "σ₀",
    "unrecovered": "σ₀",
    "judge_crash": "σ₀ of the judge",
    "kl_spike": "nats/token",
    "kl_runaway": "nats/token",
    "entropy_collapse": "of the first value",
    "entropy_explosion": "of the way to ln V",
    "degenerate": "share",
    "length_collapse": "of the first value",
    "length_blowup": "of the limit left",
    "value_divergence": "minus explained variance",
    "ratio_blowout": "ratio",
}
"""Unit of an episode's peak and depth, by kind."""


@dataclass(frozen=True)
class Rule:
    """One kind of event: what is watched, its limit at each of SCALES, and for how many steps it must last.

    An ``alarm`` alone does not mean that the run crashed.
    """

    kind: str
    alarm: bool
    watched: str
    limits: tuple[str, ...]
    window: str


def rules(spec: CrashSpec, planned_steps: int) -> tuple[Rule, ...]:
    """Return a rule per kind of crash, its window shrunk as it is for runs of ``planned_steps``."""
    above, below = _scaled("> {:g}", lambda limit, scale: limit * scale), _scaled("< {:g}", lambda x, scale: x / scale)

    def steps(window: int) -> str:
        return _steps(spec.shrunk(window, planned_steps))

    drop, history = above(spec.reward_drop, "σ₀"), spec.shrunk(spec.spike_history, planned_steps)
    smoothed = f"smoothed over {spec.smoothing_span:g} steps"
    spike = tuple(f"> max({spec.spike_factor * s:g} × median, {spec.spike_floor * s:g}) nats/token" for s in SCALES)
    degenerate = tuple(
        f"< {spec.distinct_low / s:g}, or < {spec.distinct_2_low / s:g}, or no reply ends" for s in SCALES
    )
    told = {
        "numeric": ("non-finite losses, gradients, ratios or rewards in a step", ("> 0",) * len(SCALES), _steps(1)),
        "reward_crash": (f"fall of the training reward, {smoothed}, from its running maximum", drop,
                         steps(spec.reward_window)),
        "unrecovered": ("a reward_crash still open at the end", drop, "to the end"),
        "judge_crash": ("the same of the held-out judge reward", drop,
                        f"{steps(spec.reward_window)} and {spec.judge_points} evaluations"),
        "kl_spike": (f"KL, against the median of the {_steps(history)} before", spike, _steps(1)),
        "kl_runaway": (f"KL, {smoothed}; {spec.runaway_factor:g} × the target of {spec.kl_target:g}",
                       above(spec.runaway_factor * spec.kl_target, "nats/token"), steps(spec.runaway_window)),
        "entropy_collapse": ("entropy", below(spec.entropy_low, "of its first value"), steps(spec.entropy_window)),
        "entropy_explosion": ("entropy, on the way from its first value to ln V",
                              above(spec.entropy_rise, "of the way"), steps(spec.entropy_window)),
        "degenerate": ("share of distinct replies, or of distinct bigrams, or of replies that end", degenerate,
                       steps(spec.degenerate_window)),
        "length_collapse": ("mean reply length", below(spec.length_low, "of its first value"),
                            steps(spec.length_window)),
        "length_blowup": ("what the mean reply length lacks of the limit", below(spec.length_slack, "of the limit"),
                          steps(spec.length_window)),
        "value_divergence": ("minus the critic's explained variance", above(spec.value_loss, ""),
                             steps(spec.value_window)),
        "ratio_blowout": ("largest importance ratio", above(spec.ratio_high, ""), _steps(1)),
    }  # fmt: skip
    return tuple(Rule(kind, kind in spec.alarms, *told[kind]) for kind in (*spec.harms, *spec.alarms))


def _scaled(pattern: str, scale_by: Callable[[float, float], float]) -> Callable[[float, str], tuple[str, ...]]:
    def told(limit: float, unit: str) -> tuple[str, ...]:
        return tuple(f"{pattern.format(scale_by(limit, scale))} {unit}".strip() for scale in SCALES)

    return told


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"
