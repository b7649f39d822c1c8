"""The forms of SAFE's controller, as values: the gated penalty (equations 5 to 10) and that with momentum (12)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safebench.rl.controllers import Measurement, SafeSignal, SafeState, update_safe
from safebench.rl.losses import kl_penalty
from safebench.rl.momentum import MomentumSignal, MomentumState, momentum_penalty, update_momentum
from safebench.settings.penalty import Momentum, Penalty

Columns = dict[str, float | str]


@dataclass(frozen=True)
class Form:
    """A controller: where it starts, its step, its penalty, what it logs, and its state from plain numbers."""

    start: Any
    update: Callable[[Any, Measurement], tuple[Any, Any]]
    """(state, measurement) -> (state, signal)."""
    penalty: Callable[[Any], tuple[float, float]]
    """Signal -> the penalty's value and its slope in the present KL."""
    columns: Callable[[Any], Columns]
    load: Callable[[dict[str, Any]], Any]


def form(settings: Penalty) -> Form:
    """Return the form that the settings ask for."""
    return _gated(settings) if settings.momentum is None else _with_momentum(settings, settings.momentum)


def _gated(settings: Penalty) -> Form:
    def penalty(signal: SafeSignal) -> tuple[float, float]:
        return kl_penalty(
            signal.kl_short, signal.threshold, signal.gate, settings.coefficient, asymmetric=settings.asymmetric
        )

    def update(state: SafeState, seen: Measurement) -> tuple[SafeState, SafeSignal]:
        return update_safe(settings, state, seen)

    return Form(SafeState(), update, penalty, _gated_columns, SafeState.of)


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


def _with_momentum(settings: Penalty, term: Momentum) -> Form:
    threshold = settings.base_threshold

    def penalty(signal: MomentumSignal) -> tuple[float, float]:
        return momentum_penalty(signal, threshold, settings.coefficient, term, asymmetric=settings.asymmetric)

    def columns(signal: MomentumSignal) -> Columns:
        known = {} if signal.momentum is None else {"controller/momentum": signal.momentum}
        return {"controller/threshold": threshold, **known}

    def load(state: dict[str, Any]) -> MomentumState:
        return MomentumState(tuple(state["kls"]))

    return Form(MomentumState(), lambda state, seen: update_momentum(term, state, seen), penalty, columns, load)
