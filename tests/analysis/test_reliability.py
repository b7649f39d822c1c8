"""Reliability metrics on curves worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safebench.analysis import scalars

# R 0 2 1 4 0 1 -> Delta 2 -1 3 -4 1; running best 0 2 2 4 4 4 -> D 0 0 1 0 4 3. In sigma_0 = 2: halves.
CURVE = [0.0, 2.0, 1.0, 4.0, 0.0, 1.0]
TWO = 2.0
curves = st.lists(st.integers(-100, 100), min_size=2, max_size=60)


def test_changes_and_drawdowns_by_hand():
    assert scalars.changes(CURVE, TWO).tolist() == [1.0, -0.5, 1.5, -2.0, 0.5]
    assert scalars.drawdowns(CURVE, TWO).tolist() == [0.0, 0.0, 0.5, 0.0, 2.0, 1.5]
    assert scalars.max_drawdown(CURVE, TWO) == 2.0


def test_dispersion_across_time_by_hand():
    # Windows of two changes (in sigma_0): IQR of two values is half their distance: 1.5, 2, 3.5, 2.5 halved.
    assert scalars.dispersion_across_time(CURVE, TWO, 2) == pytest.approx((0.75 + 1.0 + 1.75 + 1.25) / 4)
    # One window of all five: sorted -2, -0.5, 0.5, 1, 1.5: quartiles -0.5 and 1.
    for window in (5, 50):
        assert scalars.dispersion_across_time(CURVE, TWO, window) == 1.5


def test_risks_take_the_right_tails():
    # Of five changes the 5 % quantile lies between -2 and -0.5: only -2 is at or below it.
    assert scalars.short_term_risk(CURVE, TWO) == -2.0
    # Of six drawdowns the 95 % quantile lies between 1.5 and 2: only 2 is at or above it.
    assert scalars.long_term_risk(CURVE, TWO) == 2.0
    # The 40 % quantile of -2 -0.5 0.5 1 1.5 is at position 1.6, 0.6 of the way from -0.5 to 0.5: 0.1.
    assert scalars.short_term_risk(CURVE, TWO, tail=0.4) == pytest.approx((-2.0 - 0.5) / 2)
    # D sorted 0 0 0 0.5 1.5 2: the 60 % quantile is 0.5 at position 3.
    assert scalars.long_term_risk(CURVE, TWO, tail=0.4) == pytest.approx((0.5 + 1.5 + 2.0) / 3)


def test_a_rising_curve_has_no_long_term_risk():
    rising = list(range(50))
    assert scalars.max_drawdown(rising, 1.0) == 0.0
    assert scalars.long_term_risk(rising, 1.0) == 0.0
    assert scalars.short_term_risk(rising, 1.0) == 1.0
    assert scalars.dispersion_across_time(rising, 1.0, 20) == 0.0


def test_short_flat_and_broken_curves():
    for measure in (scalars.short_term_risk, scalars.long_term_risk, scalars.max_drawdown):
        assert math.isnan(measure([], 1.0))
        assert measure([3.0, 3.0, 3.0], 1.0) == 0.0
        assert measure([0.0, 2.0, math.nan, 1.0, math.inf], 1.0) == measure([0.0, 2.0, 1.0], 1.0)
    assert math.isnan(scalars.short_term_risk([1.0], 1.0))
    assert scalars.max_drawdown([1.0], 1.0) == 0.0
    assert math.isnan(scalars.dispersion_across_time([1.0], 1.0, 5))


def test_dispersion_across_runs_by_hand():
    # Constant curves at 0, 1, 2, 3: quartiles 0.75 and 2.25 at every step; in sigma_0 = 2: 0.75.
    flat = [[float(level)] * steps for level, steps in zip(range(4), (10, 12, 9, 11), strict=True)]
    assert scalars.dispersion_across_runs(flat, TWO, 20) == pytest.approx(0.75)
    assert math.isnan(scalars.dispersion_across_runs(flat[:1], TWO, 20))


def test_smoothed_is_the_moving_average():
    # Span 3 keeps one half: 0, 4, 4, 0 -> 0, 2, 3, 1.5.
    assert scalars.smoothed([0.0, 4.0, 4.0, 0.0], 3).tolist() == [0.0, 2.0, 3.0, 1.5]


def test_risk_across_few_runs_is_the_minimum_and_says_so():
    assert scalars.risk_across_runs([3.0, 1.0, 2.0]) == (1.0, True)
    value, minimum = scalars.risk_across_runs([float(run) for run in range(41)])
    assert (value, minimum) == (1.0, False)  # 0, 1 and 2 are at or below the 5 % quantile, 2
    assert math.isnan(scalars.risk_across_runs([])[0])


@given(curves, st.integers(-1000, 1000), st.integers(-6, 6))
def test_shift_and_scale(curve, shift, power):
    factor = 2.0**power  # whole numbers and powers of two: no rounding, so equal to the last bit
    moved = [factor * (value + shift) for value in curve]
    for measure in (scalars.short_term_risk, scalars.long_term_risk, scalars.max_drawdown):
        assert measure(moved, factor) == measure(curve, 1.0)
    assert np.min(scalars.drawdowns(curve, 1.0)) >= 0.0
    assert scalars.long_term_risk(curve, 1.0) <= scalars.max_drawdown(curve, 1.0) * (1 + 1e-12)


def quantile(values: list[float], share: float) -> float:
    """The quantile by its definition: straight between the two ordered values around position share (n - 1)."""
    ordered, position = sorted(values), share * (len(values) - 1)
    below = math.floor(position)
    above = min(below + 1, len(values) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


@given(curves, st.integers(1, 70))
def test_against_the_definitions_in_plain_python(curve, window):
    delta = [(after - before) / TWO for before, after in itertools.pairwise(curve)]
    falls = [(max(curve[: t + 1]) - curve[t]) / TWO for t in range(len(curve))]
    size = min(window, len(delta))
    parts = [delta[start : start + size] for start in range(len(delta) - size + 1)]
    ranges = [quantile(part, 0.75) - quantile(part, 0.25) for part in parts]
    assert scalars.dispersion_across_time(curve, TWO, window) == pytest.approx(
        np.mean(ranges), rel=1e-12, abs=1e-12
    )
    low, high = quantile(delta, 0.05), quantile(falls, 0.95)
    worst = [value for value in delta if value <= low + 1e-9]
    deepest = [value for value in falls if value >= high - 1e-9]
    assert scalars.short_term_risk(curve, TWO) == pytest.approx(np.mean(worst), rel=1e-12)
    assert scalars.long_term_risk(curve, TWO) == pytest.approx(np.mean(deepest), rel=1e-12)
    assert scalars.max_drawdown(curve, TWO) == max(falls)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60))
def test_risk_across_runs_is_the_lower_tails_mean(finals):
    cut = quantile(finals, 0.05)
    tail = [value for value in finals if value <= cut + 1e-9]
    assert scalars.risk_across_runs(finals) == (pytest.approx(np.mean(tail), rel=1e-12), set(tail) == {min(finals)})
    assert len(finals) > 20 or set(tail) == {min(finals)}  # below 21 runs it is the worst one
