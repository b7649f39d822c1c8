"""SAFE's asymmetric-KL controller as a value: a penalty on the KL above a threshold and on its rise.

The variant of equation 12, without moving average, gate, PID or phase. ``update(settings, state, measurement)
-> (state, signal)``, once per batch, as in ``rl/controllers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from safebench.rl.controllers import Measurement
from safebench.rl.losses import kl_penalty


class MomentumTerm(Protocol):
    """Settings of the momentum term (``settings.penalty.Momentum``)."""

    coefficient: float
    window: int


@dataclass(frozen=True)
class MomentumState:
    """All that the controller remembers between steps."""

    kls: tuple[float, ...] = ()
    """The last window of measured KLs, nats per token, oldest first."""


@dataclass(frozen=True)
class MomentumSignal:
    """What the controller says about one step's updates."""

    kl: float
    """KL_t, nats per token."""
    momentum: float | None
    """Nats per token and step; None until a window of values is seen."""


def momentum(kls: tuple[float, ...], window: int) -> float | None:
    """Return (KL_t - KL_{t-n+1}) / n of the last n = ``window`` values, None before there are so many.

    As published: the rise over n - 1 steps is divided by n. Nats per token and step.
    """
    return (kls[-1] - kls[-window]) / window if len(kls) >= window else None


def update_momentum(
    settings: MomentumTerm, state: MomentumState, measurement: Measurement
) -> tuple[MomentumState, MomentumSignal]:
    """Turn one batch's measurement into the step's signal (SAFE, equation 12); only its KL counts."""
    kls = (*state.kls, measurement.kl)[-settings.window :]
    return MomentumState(kls), MomentumSignal(measurement.kl, momentum(kls, settings.window))


def momentum_penalty(
    signal: MomentumSignal, threshold: float, coefficient: float, term: MomentumTerm, *, asymmetric: bool = True
) -> tuple[float, float]:
    """Return the penalty's value and its slope in KL_t.

    L = c max(0, KL_t - tau)^2 + m max(0, v)^2 with v = (KL_t - KL_{t-n+1}) / n (SAFE, equation 12: c 0.1,
    tau 0.3, m 5, n 50); dL/dKL_t = 2 c max(0, KL_t - tau) + 2 m max(0, v) / n. The past KL is a constant.
    Each term is one-sided; without ``asymmetric`` the first counts on both sides. The division by n is inside
    the square: a rise of D over the window weighs as m / n^2 = 0.002 times D^2, a fiftieth of c.
    """
    value, slope = kl_penalty(signal.kl, threshold, 1.0, coefficient, asymmetric=asymmetric)
    if signal.momentum is None:
        return value, slope
    rise, rise_slope = kl_penalty(signal.momentum, 0.0, 1.0, term.coefficient)
    return value + rise, slope + rise_slope / term.window
