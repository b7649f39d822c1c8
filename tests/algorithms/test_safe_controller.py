"""SAFE's controller: each part at its edges, and the whole for any sequence of measurements."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safebench.algorithms.base import Measurement
from safebench.algorithms.safe_controller import (
    PidOutput,
    PidState,
    SafeSignal,
    SafeState,
    entropy_gate,
    phase,
    pid,
    threshold,
    update_safe,
)
from safebench.config.schema import Penalty, Phase, Pid
from safebench.rl.losses import kl_penalty

rewards = st.floats(-1e6, 1e6)
measurements = st.builds(Measurement, kl=st.floats(0, 20), entropy=st.floats(0, 12), reward=rewards)


def run(settings: Penalty, seen: list[Measurement]) -> tuple[SafeState, list[SafeSignal]]:
    state, signals = SafeState(), []
    for measurement in seen:
        state, signal = update_safe(settings, state, measurement)
        signals.append(signal)
    return state, signals


def flat(count: int, reward: float = 0.0) -> list[Measurement]:
    return [Measurement(0.0, 3.0, reward)] * count


# The PID, equation 7


def test_the_first_reward_only_sets_the_average() -> None:
    assert pid(Pid(), PidState(), 5.0) == (PidState(smoothed=5.0, error=0.0, integral=0.0), PidOutput())
    assert PidOutput().total == 0.0


def test_pid_by_hand() -> None:
    # m: 1 -> 0.95 + 0.05 * 3 = 1.1, velocity 0.1, e = 0.099, I = 0.099, e - e_before = 0.099.
    state, out = pid(Pid(), PidState(1.0), 3.0)
    assert asdict(state) == pytest.approx({"smoothed": 1.1, "error": 0.099, "integral": 0.099}, rel=1e-12)
    assert out.velocity == pytest.approx(0.1, rel=1e-12)
    assert (out.proportional, out.integral, out.derivative) == pytest.approx((0.0297, 0.00099, 0.00495), rel=1e-12)
    assert out.total == pytest.approx(0.03564, rel=1e-12)
    # Then 1.1: m = 1.1 * 0.95 + 0.055 = 1.1, e = -0.001, I = 0.098, difference -0.1.
    state, out = pid(Pid(), state, 1.1)
    assert state.integral == pytest.approx(0.098, rel=1e-12)
    assert (out.proportional, out.integral, out.derivative) == pytest.approx((-0.0003, 0.00098, -0.005), rel=1e-9)


def test_the_integral_is_clamped_on_both_sides() -> None:
    for sign in (1, -1):
        state, out = pid(Pid(), PidState(0.0, 0.0, sign * 0.99), sign * 100.0)
        assert state.integral == sign
        assert out.integral == sign * 0.01
    # It comes off the clamp at once: there is no wind-up beyond it.
    state, _ = pid(Pid(), PidState(0.0, 0.0, 1.0), -1.0)
    assert state.integral == pytest.approx(1 - 0.051, rel=1e-12)


def calls_to_zero(velocity: float, limit: float) -> int:
    """Count the calls in which the smoothed reward moves by ``velocity`` until the full integral is used up."""
    gains, state, calls = Pid(integral_limit=limit), PidState(0.0, 0.0, limit), 0
    while state.integral > 0:
        assert state.smoothed is not None
        state, _ = pid(gains, state, state.smoothed + velocity / 0.05)
        calls += 1
    return calls


def test_how_long_the_integral_takes_to_recover() -> None:
    """L / |e|: a thousand batches of flat reward, longer than most runs; 91 where it falls by 0.01 a batch."""
    assert calls_to_zero(-0.01, 1.0) == 91
    assert calls_to_zero(-0.249, 1.0) == pytest.approx(4, abs=1)
    # Flat: 0.001 a call. A thousand of them sum to 1 but for their rounding, which may cost one call more.
    assert calls_to_zero(0.0, 1.0) in (1000, 1001)


@given(st.floats(-5, 0), st.floats(0.1, 3))
def test_the_recovery_time_is_the_limit_over_the_error(velocity: float, limit: float) -> None:
    calls = calls_to_zero(velocity, limit)
    expected = limit / (0.001 - velocity)
    assert expected * (1 - 1e-9) <= calls <= expected * (1 + 1e-9) + 1


@given(st.floats(-100, -1e-3), st.floats(0.1, 3))
def test_the_integral_leaves_its_clamp_with_the_first_error_of_the_other_sign(move: float, limit: float) -> None:
    for sign in (1, -1):
        state, out = pid(Pid(integral_limit=limit, target_velocity=0.0), PidState(0.0, 0.0, sign * limit), sign * move)
        assert abs(state.integral) < limit or abs(out.velocity) >= 2 * limit
        assert abs(state.integral) <= limit


def test_rising_rewards_loosen_and_falling_rewards_tighten() -> None:
    for sign in (1, -1):
        state = PidState(0.0)
        for step in range(1, 30):
            state, out = pid(Pid(), state, sign * 0.1 * step)
        assert math.copysign(1, out.total) == sign


@given(st.lists(rewards, min_size=1, max_size=60))
def test_the_integral_never_leaves_its_clamp(seen: list[float]) -> None:
    state = PidState()
    for reward in seen:
        state, out = pid(Pid(integral_limit=0.5), state, reward)
        assert -0.5 <= state.integral <= 0.5
        assert math.isfinite(out.total)


# The phases, equation 8


def test_warmup_ends_with_the_fiftieth_reward() -> None:
    assert phase(Phase(), (0.0,) * 49) == "warmup"
    assert phase(Phase(), (0.0,) * 50) == "plateau"
    assert phase(Phase(), ()) == "warmup"


def test_below_a_hundred_rewards_nothing_climbs() -> None:
    rising = tuple(float(i) for i in range(100))
    assert phase(Phase(), rising[:50]) == "plateau"
    assert phase(Phase(), rising[:99]) == "plateau"
    assert phase(Phase(), rising) == "climbing"


def test_the_last_fifty_are_compared_with_the_fifty_before_them() -> None:
    # An older past does not count.
    assert phase(Phase(), (-9.0,) * 50 + (0.5,) * 100) == "plateau"
    assert phase(Phase(), (9.0,) * 50 + (0.0,) * 50 + (0.5,) * 50) == "climbing"


def test_rise_calm_and_good_are_strict() -> None:
    # Binary fractions, so that the comparisons are exact: the mean rises by exactly 1/4, or a bit more.
    rule = Phase(rise=0.25, calm=0.5, good=0.5)
    assert phase(rule, (0.0,) * 50 + (0.25,) * 50) == "plateau"
    assert phase(rule, (0.0,) * 50 + (0.2501,) * 50) == "climbing"
    # Alternating 1/4 and 5/4: population deviation exactly 1/2, mean 3/4.
    assert phase(rule, (0.25, 1.25) * 25) == "plateau"
    assert phase(rule, (0.26, 1.25) * 25) == "converged"
    assert phase(rule, (0.5,) * 50) == "plateau"
    assert phase(rule, (0.5001,) * 50) == "converged"


def test_climbing_goes_before_converged() -> None:
    assert phase(Phase(), (0.0,) * 50 + (0.9,) * 50) == "climbing"
    assert phase(Phase(), (0.9,) * 100) == "converged"


def test_the_factor_moves_the_threshold_at_the_right_reward() -> None:
    settings = Penalty(pid=Pid(enabled=False))
    # 50 rewards of 0, then 50 of 1: warmup 1 to 49, plateau from 50, climbing from 100 on.
    _, signals = run(settings, flat(50) + flat(60, 1.0))
    assert [s.phase for s in signals[:49]] == ["warmup"] * 49
    assert [s.phase for s in signals[49:99]] == ["plateau"] * 50
    assert signals[99].phase == "climbing"
    factors = {"warmup": 1.5, "plateau": 0.8, "climbing": 1.2, "converged": 1.0}
    assert all(s.phase_factor == factors[s.phase] for s in signals)
    assert all(s.threshold == pytest.approx(0.3 * factors[s.phase], rel=1e-15) for s in signals)


def by_definition(rule: Phase, rewards: list[Fraction]) -> str:
    """Equation 8 word for word, in exact arithmetic."""
    n = rule.window
    if len(rewards) < n:
        return "warmup"
    last = rewards[-n:]
    before = rewards[-2 * n : -n] if len(rewards) >= 2 * n else last
    mean = sum(last) / n
    if mean - sum(before) / n > Fraction(rule.rise):
        return "climbing"
    variance = sum((r - mean) ** 2 for r in last) / n
    return "converged" if variance < Fraction(rule.calm) ** 2 and mean > Fraction(rule.good) else "plateau"


@given(st.lists(st.integers(-4, 8), max_size=20), st.sampled_from([0.0, 0.25]), st.sampled_from([0.125, 0.25, 0.5]))
def test_the_phase_is_the_one_defined_boundaries_included(quarters: list[int], rise: float, calm: float) -> None:
    """Rewards in quarters and windows of four: means and thresholds meet exactly, and often."""
    rule = Phase(window=4, rise=rise, calm=calm, good=0.5)
    exact = [Fraction(q, 4) for q in quarters]
    assert phase(rule, tuple(map(float, exact))) == by_definition(rule, exact)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_plateau_until_it_is_out_of_the_windows(wrong: float) -> None:
    rule = Phase(window=3)
    rewards = (1.0, wrong, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    # Once the last six are finite: calm and good.
    names = ["warmup"] * 2 + ["plateau"] * 5 + ["converged"]
    assert [phase(rule, rewards[:n]) for n in range(1, 9)] == names


# The gate, equation 9, and the threshold, equation 6


def test_gate_by_hand() -> None:
    assert entropy_gate(1.9, 2.0, 0.5) == 1.0
    assert entropy_gate(0.0, 2.0, 0.5) == pytest.approx(20.0, rel=1e-15)
    assert entropy_gate(3.9, 2.0, 0.5) == 0.5
    assert entropy_gate(9.0, 2.0, 0.5) == 0.5
    assert math.isnan(entropy_gate(math.nan, 2.0, 0.5))


@given(st.floats(0, 20), st.floats(0, 20), st.floats(0, 5), st.floats(0, 2))
def test_the_gate_never_opens_as_entropy_falls(one: float, other: float, floor: float, least: float) -> None:
    low, high = sorted((one, other))
    assert entropy_gate(low, floor, least) >= entropy_gate(high, floor, least) >= least


def test_threshold_by_hand() -> None:
    assert threshold(0.3, 0.02, 1.5, 0.1, 0.6) == pytest.approx(0.48, rel=1e-15)
    assert threshold(0.3, 0.2, 1.5, 0.1, 0.6) == 0.6
    assert threshold(0.3, -0.25, 1.5, 0.1, 0.6) == 0.1
    assert math.isnan(threshold(0.3, math.nan, 1.5, 0.1, 0.6))


# The whole, equations 5 to 9


@given(st.lists(measurements, min_size=1, max_size=120))
def test_the_threshold_stays_in_its_clamp_and_the_trackers_between_what_they_saw(seen: list[Measurement]) -> None:
    _, signals = run(Penalty(phase=Phase(window=10)), seen)
    for n, signal in enumerate(signals, 1):
        least, most = min(m.kl for m in seen[:n]), max(m.kl for m in seen[:n])
        assert 0.1 <= signal.threshold <= 0.6
        assert 0.5 <= signal.gate <= 20
        for tracked in (signal.kl_short, signal.kl_long):
            assert least * (1 - 1e-12) <= tracked <= most * (1 + 1e-12)


wild = st.one_of(st.floats(-1e60, 1e60), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(st.lists(st.floats(-1e60, 1e60), min_size=1, max_size=40))
def test_the_threshold_stays_in_its_clamp_for_any_rewards(seen: list[float]) -> None:
    for signal in run(Penalty(phase=Phase(window=5)), [Measurement(0.3, 3.0, reward) for reward in seen])[1]:
        assert 0.1 <= signal.threshold <= 0.6


@given(st.lists(wild, min_size=1, max_size=30))
@example([0.0, math.inf, -math.inf, 0.0])
@example([math.nan] * 12)
def test_a_reward_that_is_not_finite_is_never_hidden(seen: list[float]) -> None:
    """The threshold is in its clamp or no number, and no number for good from the next reward on."""
    _, signals = run(Penalty(phase=Phase(window=4)), [Measurement(0.5, 3.0, reward) for reward in seen])
    first = next((n for n, reward in enumerate(seen) if not math.isfinite(reward)), len(seen))
    for n, signal in enumerate(signals):
        assert 0.1 <= signal.threshold <= 0.6 or (n >= first and math.isnan(signal.threshold))
        assert math.isnan(signal.threshold) or n <= first
        penalty = kl_penalty(signal.kl_short, signal.threshold, signal.gate, 0.1)
        assert all(map(math.isfinite if n < first else math.isnan, penalty)) or n == first


@given(st.lists(wild, min_size=1, max_size=30))
def test_without_the_pid_no_reward_takes_the_threshold_out_of_its_clamp(seen: list[float]) -> None:
    off = Penalty(phase=Phase(window=4), pid=Pid(enabled=False))
    for signal in run(off, [Measurement(0.5, 3.0, reward) for reward in seen])[1]:
        assert signal.threshold == pytest.approx(0.3 * signal.phase_factor, rel=1e-15)


def test_trackers_start_at_the_first_kl_and_follow_at_their_decays() -> None:
    _, signals = run(Penalty(), [Measurement(kl, 3.0, 0.0) for kl in (1.0, 2.0, 0.0)])
    # Short: 1, 0.9 + 0.2 = 1.1, 0.99. Long: 1, 0.99 + 0.02 = 1.01, 0.9999.
    assert [s.kl_short for s in signals] == pytest.approx([1.0, 1.1, 0.99], rel=1e-12)
    assert [s.kl_long for s in signals] == pytest.approx([1.0, 1.01, 0.9999], rel=1e-12)


def test_a_signal_by_hand() -> None:
    state, _ = update_safe(Penalty(), SafeState(), Measurement(0.2, 3.0, 1.0))
    state, signal = update_safe(Penalty(), state, Measurement(0.7, 0.9, 3.0))
    # PID as by hand above: 0.03564; warmup: (0.3 + 0.03564) * 1.5; gate 2 / (0.9 + 0.1).
    assert signal.kl_short == pytest.approx(0.25, rel=1e-12)
    assert signal.threshold == pytest.approx(0.50346, rel=1e-12)
    assert signal.gate == pytest.approx(2.0, rel=1e-15)
    assert (signal.phase, signal.phase_factor) == ("warmup", 1.5)
    assert state.rewards == (1.0, 3.0)


@given(st.lists(measurements, min_size=2, max_size=30))
def test_parts_that_are_off_do_nothing_and_say_so(seen: list[Measurement]) -> None:
    off = Penalty(gate=False, pid=Pid(enabled=False), phase=Phase(enabled=False))
    for signal in run(off, seen)[1]:
        assert (signal.threshold, signal.gate, signal.phase_factor) == (0.3, 1.0, 1.0)
        assert signal.pid == PidOutput(velocity=signal.pid.velocity)


def test_the_log_explains_the_threshold() -> None:
    """tau is what its logged parts say, with and without the PID: claim 9 of the ledger rests on it."""
    seen = [Measurement(0.1, 3.0, math.sin(i)) for i in range(120)]
    for enabled in (True, False):
        for signal in run(Penalty(pid=Pid(enabled=enabled)), seen)[1]:
            explained = min(max((0.3 + signal.pid.total) * signal.phase_factor, 0.1), 0.6)
            assert signal.threshold == pytest.approx(explained, rel=1e-15)


def test_without_its_offset_the_gate_is_one_at_the_floor_and_bounded_by_its_own_number() -> None:
    assert entropy_gate(2.0, 2.0, 0.5, offset=0.0) == 1.0
    assert entropy_gate(2.0, 2.0, 0.5) < 1.0
    assert entropy_gate(1.0, 2.0, 0.5, offset=0.0, most=20.0) == 2.0
    assert entropy_gate(0.05, 2.0, 0.5, offset=0.0, most=20.0) == 20.0
    assert entropy_gate(0.0, 2.0, 0.5, offset=0.0, most=20.0) == 20.0
    assert entropy_gate(8.0, 2.0, 0.5, offset=0.0, most=20.0) == 0.5


def test_the_standardised_rule_steers_the_threshold() -> None:
    """Twice a window of 4: flat, then higher by many standard errors, then flat at a gain of 3."""
    rewards = [0.0, 0.1, 0.0, 0.1] * 2 + [3.0, 3.1, 3.0, 3.1] * 3
    seen = [Measurement(0.2, 3.0, reward) for reward in rewards]
    rule = Phase(rule="standardised", window=4)
    signals = run(Penalty(phase=rule, pid=Pid(enabled=False)), seen)[1]
    phases = [signal.phase for signal in signals]
    assert phases[:8] == ["warmup"] * 7 + ["plateau"]
    assert phases[11] == "climbing"
    assert phases[-1] == "converged"
    assert signals[-1].threshold == pytest.approx(0.3 * rule.converged, rel=1e-15)


@given(st.lists(measurements, max_size=30), st.lists(measurements, min_size=1, max_size=5))
def test_a_state_goes_through_plain_numbers_and_back(seen: list[Measurement], more: list[Measurement]) -> None:
    state, _ = run(Penalty(phase=Phase(window=4)), seen)
    plain = json.loads(json.dumps(asdict(state)))
    back = SafeState.of(plain)
    assert back == state
    one = other = None
    for measurement in more:
        state, one = update_safe(Penalty(), state, measurement)
        back, other = update_safe(Penalty(), back, measurement)
    assert one == other


@given(st.lists(measurements, min_size=1, max_size=40))
def test_only_the_last_two_windows_are_remembered(seen: list[Measurement]) -> None:
    state, _ = run(Penalty(phase=Phase(window=7)), seen)
    assert state.rewards == tuple(m.reward for m in seen)[-14:]


def test_as_published_the_pid_hardly_moves_the_threshold() -> None:
    """Flat rewards for a run of 2000 steps: the integral sits at its clamp, the PID gives -0.01."""
    _, signals = run(Penalty(), flat(2000))
    assert signals[-1].pid.integral == pytest.approx(-0.01, rel=1e-9)
    assert signals[-1].pid.total == pytest.approx(-0.0103, rel=1e-9)
    assert min(s.pid.total for s in signals) > -0.011
