"""The asymmetric-KL controller with momentum (equation 12): by hand, for any sequence, and on a policy."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from safebench.algorithms.base import Measurement
from safebench.algorithms.safe import SAFE
from safebench.algorithms.safe_controller import (
    MomentumSignal,
    MomentumState,
    momentum,
    momentum_penalty,
    update_momentum,
)
from safebench.config.schema import Momentum, Penalty, Phase, Pid
from tests.support.learner import ONE, make, without_advantage
from tests.support.tiny import tiny_settings

TERM = Momentum()
ALONE: dict[str, Any] = {"gate": False, "pid": {"enabled": False}, "phase": {"enabled": False}, "momentum": {}}
kls = st.floats(0, 20)


def run(kls: list[float], term: Momentum = TERM) -> tuple[MomentumState, list[MomentumSignal]]:
    state, signals = MomentumState(), []
    for kl in kls:
        state, signal = update_momentum(term, state, Measurement(kl, 3.0, 0.0))
        signals.append(signal)
    return state, signals


def penalty(signal: MomentumSignal, term: Momentum = TERM) -> tuple[float, float]:
    return momentum_penalty(signal, 0.3, 0.1, term)


def test_momentum_by_hand() -> None:
    # KL_t - KL_{t-49} is the last of 50 values less the first, over 50.
    assert momentum(tuple(0.1 * i for i in range(50)), 50) == pytest.approx(4.9 / 50, rel=1e-14)
    assert momentum((9.0, *(0.1 * i for i in range(50))), 50) == pytest.approx(4.9 / 50, rel=1e-14)
    assert momentum((0.3, 0.1), 2) == pytest.approx(-0.1, rel=1e-14)


def test_the_term_sets_in_with_the_fiftieth_value() -> None:
    _, signals = run([0.0] * 49 + [1.0] * 60)
    assert [signal.momentum for signal in signals[:49]] == [None] * 49
    # From the 50th to the 98th the value 49 steps back is still 0; from the 99th it is 1.
    assert [signal.momentum for signal in signals[49:]] == [0.02] * 49 + [0.0] * 11


def test_penalty_by_hand() -> None:
    # 0.1 * 0.2^2 = 0.004, slope 0.04; before 50 values nothing else.
    assert penalty(MomentumSignal(0.5, None)) == pytest.approx((0.004, 0.04), rel=1e-14)
    # Momentum 0.02: 5 * 0.02^2 = 0.002; slope 2 * 5 * 0.02 / 50 = 0.004.
    assert penalty(MomentumSignal(0.5, 0.02)) == pytest.approx((0.006, 0.044), rel=1e-14)
    # Below the threshold the rise counts alone; a fall does not count.
    assert penalty(MomentumSignal(0.2, 0.02)) == pytest.approx((0.002, 0.004), rel=1e-14)
    assert penalty(MomentumSignal(0.2, -0.02)) == (0.0, 0.0)
    both = momentum_penalty(MomentumSignal(0.1, -0.02), 0.3, 0.1, TERM, asymmetric=False)
    assert both == pytest.approx((0.004, -0.04), rel=1e-14)


@given(st.lists(kls, min_size=2, max_size=12), st.floats(0, 50))
def test_the_slope_is_the_derivative_in_the_last_kl(seen: list[float], coefficient: float) -> None:
    """By central differences through the controller itself, the KLs before held fixed."""
    term = Momentum(coefficient=coefficient, window=4)
    h = 1e-6
    above, at, below = (penalty(run([*seen[:-1], seen[-1] + d], term)[1][-1], term) for d in (h, 0.0, -h))
    # Exact but for the kinks, off by (0.1 + c / 16) h / 2 each, and for rounding of values up to 40 + 25 c.
    assert (above[0] - below[0]) / (2 * h) == pytest.approx(at[1], abs=(1 + coefficient) * (h + 1e-7))


@given(st.lists(kls, min_size=1, max_size=70))
def test_the_penalty_has_a_slope_whenever_it_has_a_value(seen: list[float]) -> None:
    for signal in run(seen)[1]:
        value, slope = penalty(signal)
        assert value >= 0
        assert slope >= 0
        assert (slope > 0) >= (value > 0)
        if signal.kl <= 0.3 and (signal.momentum or 0.0) <= 0:
            assert (value, slope) == (0.0, 0.0)


@pytest.mark.parametrize("signal", [MomentumSignal(math.nan, None), MomentumSignal(0.1, math.nan)])
def test_a_kl_that_is_not_a_number_is_not_no_penalty(signal: MomentumSignal) -> None:
    assert all(math.isnan(x) for x in penalty(signal))


@given(st.lists(kls, max_size=70), st.lists(kls, min_size=1, max_size=5))
def test_a_state_goes_through_plain_numbers_and_back(seen: list[float], more: list[float]) -> None:
    settings = tiny_settings("safe", penalty=ALONE)
    first, second = SAFE(settings), SAFE(settings)
    for kl in seen:
        first.control(Measurement(kl, 3.0, 0.0))
    second.restore(json.loads(json.dumps(first.dump())))
    assert second.state == first.state == MomentumState(tuple(seen[-50:]))
    assert asdict(first.state) == first.dump()
    for kl in more:
        assert first.control(Measurement(kl, 3.0, 0.0)) == second.control(Measurement(kl, 3.0, 0.0))


def test_the_arm_reports_threshold_and_momentum() -> None:
    arm = SAFE(tiny_settings("safe", penalty={**ALONE, "momentum": {"window": 2}}))
    assert arm.control(Measurement(0.2, 3.0, 0.0)) == {"controller/threshold": 0.3}
    assert arm.control(Measurement(0.6, 3.0, 0.0)) == {
        "controller/threshold": 0.3,
        "controller/momentum": pytest.approx(0.2, rel=1e-14),
    }


def test_it_stands_in_place_of_gate_pid_and_phase() -> None:
    off = {"gate": False, "pid": Pid(enabled=False), "phase": Phase(enabled=False)}
    assert Penalty(momentum=TERM, **off).momentum == TERM
    for part in off:
        with pytest.raises(ValidationError, match=f"set {part}.* to false"):
            Penalty(momentum=TERM, **{name: value for name, value in off.items() if name != part})
    with pytest.raises(ValidationError, match=r"momentum\.window"):
        Penalty.model_validate({"momentum": {"window": 1}})


def test_the_gradient_is_the_slope_times_that_of_the_kl() -> None:
    """The whole weight of both terms goes through the KL of the present mini-batch."""
    only = {"value_coefficient": 0.0, "entropy_coefficient": 0.0}
    one = make(
        "safe",
        policy={"dtype": torch.float64},
        update=ONE,
        loss=only,
        penalty={**ALONE, "base_threshold": 0.2, "momentum": {"coefficient": 50.0, "window": 2}},
    )
    one.algorithm.control(Measurement(0.05, 3.0, 0.0))
    experience = without_advantage(one.experience())
    before = one.kl(experience)
    weights = one.policy_weights()
    tally = one.run(experience, gradient_norms=True)
    slope = 2 * 0.1 * (before - 0.2) + 2 * 50 * (before - 0.05) / 4
    assert before > 0.2
    value = 0.1 * (before - 0.2) ** 2 + 50 * ((before - 0.05) / 2) ** 2
    assert tally.means()["loss/penalty"] == pytest.approx(value, rel=1e-12)
    # The gradient of the KL itself, by central differences along the direction that the update went.
    gradient = one.gradients()[: len(weights)]
    direction = gradient / gradient.norm()

    def kl_at(distance: float) -> float:
        torch.nn.utils.vector_to_parameters(weights + distance * direction, one.updater.policy_parameters)
        return one.kl(experience)

    h = 1e-5
    assert float(gradient.norm()) == pytest.approx(slope * (kl_at(h) - kl_at(-h)) / (2 * h), rel=1e-6)
    assert tally.gradients["grad/penalty"] == pytest.approx(float(gradient.norm()), rel=1e-6)


def test_a_step_on_the_penalty_alone_brings_the_kl_down() -> None:
    only = {"value_coefficient": 0.0, "entropy_coefficient": 0.0}
    one = make("safe", update={**ONE, "learning_rate": 0.05}, loss=only, penalty=ALONE)
    experience = without_advantage(one.experience())
    before = one.kl(experience)
    one.run(experience)
    assert one.kl(experience) < before - 1e-3
