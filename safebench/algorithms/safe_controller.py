"""Implement SAFE's controllers as functions (equations 5 to 12): trackers, PID, phase, threshold, gate, momentum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, pstdev, variance
from typing import Any, Protocol

from safebench.algorithms.base import Measurement
from safebench.config.schema import Momentum, Penalty
from safebench.rl.losses import kl_penalty


class StandardisedRule(Protocol):
    """Settings of the rule (``config.schema.Phase``)."""

    window: int
    good: float
    sure: float


def standardised_phase(rule: StandardisedRule, rewards: tuple[float, ...], first: float) -> str:
    """Return the run's phase from its rewards, after SAFE's equation 8, with changes measured in standard errors.

    With n the window, a the last n rewards, b the n before them: z = (mean a - mean b) / sqrt(var a / n + var b / n).
    The phase is ``warmup`` before 2n rewards. Then it is ``climbing`` if z > ``sure``; else ``converged`` if
    |z| <= ``sure`` and mean a exceeds ``first`` by more than ``good``; else ``plateau``. It is also ``plateau`` if a
    reward is not finite. Rewards are in sigma_0, oldest first (the last 2n suffice). ``first`` is the reward of the
    first batch, which the initial policy sampled.

    The published rule compares changes with fixed numbers: a rise of 0.01 fires on 39 % of flat windows at 32 replies
    a batch, and such batches cannot reach a spread below 0.02. This rule compares both with standard errors, and
    "good" is a gain over the first reward. The phase therefore does not depend on the reward's scale or zero.
    """
    n = rule.window
    if len(rewards) < 2 * n:
        return "warmup"
    if not all(map(math.isfinite, (*rewards[-2 * n :], first))):
        return "plateau"
    recent, before = rewards[-n:], rewards[-2 * n : -n]
    z = standard_score(recent, before)
    if z > rule.sure:
        return "climbing"
    return "converged" if abs(z) <= rule.sure and fmean(recent) - first > rule.good else "plateau"


def standard_score(recent: tuple[float, ...], before: tuple[float, ...]) -> float:
    """Return the difference of the means over its standard error (Welch 1947); 0 if both are constant and equal."""
    difference = fmean(recent) - fmean(before)
    error = math.sqrt(variance(recent) / len(recent) + variance(before) / len(before))
    if error == 0.0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error


class PidGains(Protocol):
    """Settings of the PID (``config.schema.Pid``)."""

    enabled: bool
    proportional: float
    integral: float
    derivative: float
    target_velocity: float
    integral_limit: float
    smoothing: float


class PhaseRule(Protocol):
    """Settings of the phases (``config.schema.Phase``)."""

    enabled: bool
    window: int
    rise: float
    calm: float
    good: float
    sure: float
    warmup: float
    climbing: float
    converged: float
    plateau: float

    @property
    def rule(self) -> str: ...


@dataclass(frozen=True)
class PidState:
    """Smoothed reward (None before the first), last error and clamped integral."""

    smoothed: float | None = None
    error: float = 0.0
    integral: float = 0.0


@dataclass(frozen=True)
class PidOutput:
    """The PID's three parts in nats per token, and the velocity in sigma_0 per step."""

    velocity: float = 0.0
    proportional: float = 0.0
    integral: float = 0.0
    derivative: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the three parts, which is added to the base threshold."""
        return self.proportional + self.integral + self.derivative


def pid(gains: PidGains, state: PidState, reward: float) -> tuple[PidState, PidOutput]:
    """Advance the PID by one reward (SAFE, equation 7).

    m <- s m + (1 - s) r;  e = (m_t - m_{t-1}) - target;  I <- clip(I + e, +-limit);
    out = kp e + ki I + kd (e_t - e_{t-1}). The first call only sets m and returns zero.

    I does not wind up beyond its limit L. It leaves the clamp at the first error of the opposite sign, and under a
    constant error e it is back at zero after L / |e| calls. With the published L = 1 and target 0.001 this takes
    1000 calls with flat rewards, and 91 calls if m falls by 0.01 per call.
    """
    if state.smoothed is None:
        return replace(state, smoothed=reward), PidOutput()
    smoothed = gains.smoothing * state.smoothed + (1 - gains.smoothing) * reward
    velocity = smoothed - state.smoothed
    error = velocity - gains.target_velocity
    integral = min(max(state.integral + error, -gains.integral_limit), gains.integral_limit)
    output = PidOutput(
        velocity,
        gains.proportional * error,
        gains.integral * integral,
        gains.derivative * (error - state.error),
    )
    return PidState(smoothed, error, integral), output


def phase(rule: PhaseRule, rewards: tuple[float, ...]) -> str:
    """Return the run's phase from the rewards so far (SAFE, equation 8).

    With n the window, the phase is ``warmup`` before n rewards. Then the last n rewards are compared with the n
    before them (with themselves below 2n rewards): ``climbing`` if the mean rose by more than ``rise``; else
    ``converged`` if the standard deviation (population) is below ``calm`` and the mean above ``good``; else
    ``plateau``. ``rewards`` are in sigma_0, oldest first; the last 2n suffice. If one of them is not finite, the
    phase is ``plateau``.
    """
    n = rule.window
    if len(rewards) < n:
        return "warmup"
    if not all(map(math.isfinite, rewards[-2 * n :])):
        return "plateau"
    recent = rewards[-n:]
    before = rewards[-2 * n : -n] if len(rewards) >= 2 * n else recent
    mean = fmean(recent)
    if mean - fmean(before) > rule.rise:
        return "climbing"
    return "converged" if pstdev(recent) < rule.calm and mean > rule.good else "plateau"


def entropy_gate(
    entropy: float, floor: float, least: float, offset: float = 0.1, most: float = math.inf
) -> float:
    """Return g = max(least, min(most, floor / (H + offset))) (SAFE, equation 9), larger at low entropy; nats.

    As published, the offset is 0.1 and the only upper bound is the resulting floor / 0.1; the gate is then below 1 at
    H = floor. With offset 0 the gate is 1 at H = floor, and ``most`` bounds it.
    """
    raw = floor / (entropy + offset) if entropy + offset != 0.0 else math.inf
    return max(min(raw, most), least)


def threshold(base: float, control: float, factor: float, lowest: float, highest: float) -> float:
    """Return tau = clamp((base + PID) phi, lowest, highest) (SAFE, equation 6); nats per token."""
    return min(max((base + control) * factor, lowest), highest)


class PenaltySettings(Protocol):
    """Settings of the controller (``config.schema.Penalty``)."""

    base_threshold: float
    min_threshold: float
    max_threshold: float
    short_decay: float
    long_decay: float
    gate: bool
    gate_floor: float
    gate_offset: float
    gate_most: float | None
    entropy_floor: float

    @property
    def pid(self) -> PidGains: ...

    @property
    def phase(self) -> PhaseRule: ...


@dataclass(frozen=True)
class SafeState:
    """State of SAFE's controller between steps."""

    kl_short: float | None = None
    kl_long: float | None = None
    pid: PidState = PidState()
    rewards: tuple[float, ...] = ()
    """The last two windows of rewards, oldest first."""
    first: float | None = None
    """The first batch's reward, in sigma_0."""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> SafeState:
        """Return the state from ``plain``, the result of ``dataclasses.asdict``, which may have lists from JSON."""
        return cls(**{**plain, "pid": PidState(**plain["pid"]), "rewards": tuple(plain["rewards"])})


@dataclass(frozen=True)
class SafeSignal:
    """Output of SAFE's controller for one step's updates."""

    kl_short: float
    kl_long: float
    threshold: float
    gate: float
    phase: str
    phase_factor: float
    pid: PidOutput


def update_safe(
    settings: PenaltySettings, state: SafeState, measurement: Measurement
) -> tuple[SafeState, SafeSignal]:
    """Turn one batch's measurement into the step's signal (SAFE, equations 5 to 9).

    The trackers start at the first measured KL instead of zero, which is what bias correction gives.
    """
    short = _average(state.kl_short, measurement.kl, settings.short_decay)
    long = _average(state.kl_long, measurement.kl, settings.long_decay)
    pid_state, control = pid(settings.pid, state.pid, measurement.reward)
    if not settings.pid.enabled:
        control = PidOutput(control.velocity)  # the signal reports only parts that changed the threshold
    rewards = (*state.rewards, measurement.reward)[-2 * settings.phase.window :]
    first = measurement.reward if state.first is None else state.first
    standardised = settings.phase.rule == "standardised"
    name = standardised_phase(settings.phase, rewards, first) if standardised else phase(settings.phase, rewards)
    factor = float(getattr(settings.phase, name)) if settings.phase.enabled else 1.0
    signal = SafeSignal(
        kl_short=short,
        kl_long=long,
        threshold=threshold(
            settings.base_threshold,
            control.total,
            factor,
            settings.min_threshold,
            settings.max_threshold,
        ),
        gate=_gate(settings, measurement.entropy) if settings.gate else 1.0,
        phase=name,
        phase_factor=factor,
        pid=control,
    )
    return SafeState(short, long, pid_state, rewards, first), signal


def _gate(settings: PenaltySettings, entropy: float) -> float:
    most = math.inf if settings.gate_most is None else settings.gate_most
    return entropy_gate(entropy, settings.entropy_floor, settings.gate_floor, settings.gate_offset, most)


def _average(old: float | None, new: float, decay: float) -> float:
    return new if old is None else decay * old + (1 - decay) * new


class MomentumTerm(Protocol):
    """Settings of the momentum term (``config.schema.Momentum``)."""

    coefficient: float
    window: int


@dataclass(frozen=True)
class MomentumState:
    """State of the controller with momentum between steps."""

    kls: tuple[float, ...] = ()
    """The last window of measured KLs, nats per token, oldest first."""


@dataclass(frozen=True)
class MomentumSignal:
    """Output of the controller with momentum for one step's updates."""

    kl: float
    """KL_t, nats per token."""
    momentum: float | None
    """Nats per token and step; None before a full window of values."""


def momentum(kls: tuple[float, ...], window: int) -> float | None:
    """Return (KL_t - KL_{t-n+1}) / n of the last n = ``window`` values, None if there are fewer.

    As published: the rise over n - 1 steps is divided by n. Nats per token and step.
    """
    return (kls[-1] - kls[-window]) / window if len(kls) >= window else None


def update_momentum(
    settings: MomentumTerm, state: MomentumState, measurement: Measurement
) -> tuple[MomentumState, MomentumSignal]:
    """Turn one batch's measurement into the step's signal (SAFE, equation 12); only its KL is used."""
    kls = (*state.kls, measurement.kl)[-settings.window :]
    return MomentumState(kls), MomentumSignal(measurement.kl, momentum(kls, settings.window))


def momentum_penalty(
    signal: MomentumSignal, threshold: float, coefficient: float, term: MomentumTerm, *, asymmetric: bool = True
) -> tuple[float, float]:
    """Return the penalty's value and its slope in KL_t.

    L = c max(0, KL_t - tau)^2 + m max(0, v)^2 with v = (KL_t - KL_{t-n+1}) / n (SAFE, equation 12: c 0.1,
    tau 0.3, m 5, n 50); dL/dKL_t = 2 c max(0, KL_t - tau) + 2 m max(0, v) / n. The past KL is a constant.
    Each term is one-sided; without ``asymmetric`` the first one is two-sided. The division by n is inside the
    square: a rise of D over the window has the weight m / n^2 = 0.002 on D^2, a fiftieth of c.
    """
    value, slope = kl_penalty(signal.kl, threshold, 1.0, coefficient, asymmetric=asymmetric)
    if signal.momentum is None:
        return value, slope
    rise, rise_slope = kl_penalty(signal.momentum, 0.0, 1.0, term.coefficient)
    return value + rise, slope + rise_slope / term.window


Columns = dict[str, float | str]


@dataclass(frozen=True)
class Controller:
    """A controller: initial state, update, penalty, logged columns, and a function that loads its state."""

    start: Any
    update: Callable[[Any, Measurement], tuple[Any, Any]]
    """(state, measurement) -> (state, signal)."""
    penalty: Callable[[Any], tuple[float, float]]
    """Signal -> the penalty's value and its slope in the current KL."""
    columns: Callable[[Any], Columns]
    load: Callable[[dict[str, Any]], Any]


def controller_of(settings: Penalty) -> Controller:
    """Return the controller that the settings select."""
    return _gated(settings) if settings.momentum is None else _with_momentum(settings, settings.momentum)


def _gated(settings: Penalty) -> Controller:
    def penalty(signal: SafeSignal) -> tuple[float, float]:
        return kl_penalty(
            signal.kl_short, signal.threshold, signal.gate, settings.coefficient, asymmetric=settings.asymmetric
        )

    def update(state: SafeState, seen: Measurement) -> tuple[SafeState, SafeSignal]:
        return update_safe(settings, state, seen)

    return Controller(SafeState(), update, penalty, _gated_columns, SafeState.of)


def _gated_columns(signal: SafeSignal) -> Columns:
    return {
        "controller/kl_short": signal.kl_short,
        "controller/kl_long": signal.kl_long,
        "controller/threshold": signal.threshold,
        "controller/velocity": signal.pid.velocity,
        "controller/pid_p": signal.pid.proportional,
        "controller/pid_i": signal.pid.integral,
        "controller/pid_d": signal.pid.derivative,
        "controller/phase": signal.phase,
        "controller/phase_factor": signal.phase_factor,
        "controller/gate": signal.gate,
    }


def _with_momentum(settings: Penalty, term: Momentum) -> Controller:
    threshold = settings.base_threshold

    def penalty(signal: MomentumSignal) -> tuple[float, float]:
        return momentum_penalty(signal, threshold, settings.coefficient, term, asymmetric=settings.asymmetric)

    def columns(signal: MomentumSignal) -> Columns:
        known = {} if signal.momentum is None else {"controller/momentum": signal.momentum}
        return {"controller/threshold": threshold, **known}

    def load(state: dict[str, Any]) -> MomentumState:
        return MomentumState(tuple(state["kls"]))

    return Controller(MomentumState(), lambda state, seen: update_momentum(term, state, seen), penalty, columns, load)
