"""SAFE's controller as a value: trackers, PID on reward velocity, phase, threshold, entropy gate.

``init() -> state``; ``update(settings, state, measurement) -> (state, signal)``. States are frozen
dataclasses of plain numbers: checkpoints, replay and property tests come free. One update per batch.

What is not finite is not hidden. A reward that is not goes through the PID into the threshold (an infinite one
first to the clamp's edge), where it stays; KL and entropy go into tracker and gate. Either makes the penalty no
number, which ends the run. With the PID off no reward reaches the threshold but through the phase, which is
``plateau`` while one that is not finite is in its windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any, Protocol

from safebench.rl.phases import standardised_phase


class PidGains(Protocol):
    """Settings of the PID (``settings.penalty.Pid``)."""

    enabled: bool
    proportional: float
    integral: float
    derivative: float
    target_velocity: float
    integral_limit: float
    smoothing: float


class PhaseRule(Protocol):
    """Settings of the phases (``settings.penalty.Phase``)."""

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
class Measurement:
    """What the controller sees of one batch."""

    kl: float
    """Exact KL to the reference, nats per token, mean over the batch."""
    entropy: float
    """Nats per token, mean over the batch."""
    reward: float
    """Mean reward in units of sigma_0."""
    raw_reward: float = math.nan
    """Mean reward as the reward gives it."""
    entropy_by_reply: float = math.nan
    """Nats per token, mean over replies of each reply's own mean."""


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
        """Their sum, which moves the threshold."""
        return self.proportional + self.integral + self.derivative


def pid(gains: PidGains, state: PidState, reward: float) -> tuple[PidState, PidOutput]:
    """Advance the PID by one reward (SAFE, equation 7).

    m <- s m + (1 - s) r;  e = (m_t - m_{t-1}) - target;  I <- clip(I + e, +-limit);
    out = kp e + ki I + kd (e_t - e_{t-1}). The first call only sets m and returns zero.

    I does not wind up beyond its limit L: it leaves the clamp with the first error of the other sign, and under a
    constant error e it is back at zero after L / |e| calls. With the published L = 1 and target 0.001 that is
    1000 calls of flat rewards, and 91 where m falls by 0.01 a call.
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
    """Return the phase that the rewards seen so far put the run in (SAFE, equation 8).

    With n the window: ``warmup`` before n rewards; then with the last n against the n before them
    (against themselves below 2n): ``climbing`` if the mean rose by more than ``rise``; else
    ``converged`` if the deviation (population) is below ``calm`` and the mean above ``good``; else
    ``plateau``. ``rewards`` in sigma_0, oldest first; the last 2n suffice. Where one of them is not finite there
    is neither rise nor calm to speak of: ``plateau``.
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
    """Return g = max(least, min(most, floor / (H + offset))) (SAFE, equation 9): larger where entropy is low. Nats.

    As published, offset 0.1 and no bound but the one that it gives, floor / 0.1; the gate is then below 1 at the floor.
    With offset 0 it is 1 there, and ``most`` bounds it.
    """
    raw = floor / (entropy + offset) if entropy + offset != 0.0 else math.inf
    return max(min(raw, most), least)


def threshold(base: float, control: float, factor: float, lowest: float, highest: float) -> float:
    """Return tau = clamp((base + PID) phi, lowest, highest) (SAFE, equation 6); nats per token."""
    return min(max((base + control) * factor, lowest), highest)


class PenaltySettings(Protocol):
    """Settings of the controller (``settings.penalty.Penalty``)."""

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
    """All that SAFE's controller remembers between steps."""

    kl_short: float | None = None
    kl_long: float | None = None
    pid: PidState = PidState()
    rewards: tuple[float, ...] = ()
    """The last two windows of rewards, oldest first."""
    first: float | None = None
    """The first batch's reward, in sigma_0."""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> SafeState:
        """Return the state that ``dataclasses.asdict`` made ``plain``, JSON's lists included."""
        return cls(**{**plain, "pid": PidState(**plain["pid"]), "rewards": tuple(plain["rewards"])})


@dataclass(frozen=True)
class SafeSignal:
    """What SAFE's controller says about one step's updates."""

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

    The trackers start at the first measured KL rather than at zero, as bias correction would have it.
    """
    short = _average(state.kl_short, measurement.kl, settings.short_decay)
    long = _average(state.kl_long, measurement.kl, settings.long_decay)
    pid_state, control = pid(settings.pid, state.pid, measurement.reward)
    if not settings.pid.enabled:
        control = PidOutput(control.velocity)  # what the signal reports is what moved the threshold
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
