"""Fits of judge reward against KL: planted curves come back, and a curve's top is where its slope vanishes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from safebench.analysis import statistics
from safebench.analysis.frontier import (
    ArmPaths,
    BestOf,
    Coefficients,
    Point,
    RunPath,
    arm_fit,
    curve_fit,
    fit_best_of_n,
    fit_training,
    path_fit,
    peak_of_training,
)

KL = np.array([0.3, 1.0, 2.5, 6.0, 11.0])


def training(alpha, beta, kl=KL):
    d = np.sqrt(kl)
    return d * (alpha - beta * np.log(d))


def path(seed, alpha, beta, start=0.4):
    points = [Point(0, 0.0, start, 0.0)]
    points += [
        Point(30 * n, float(kl), start + float(gain), 0.0)
        for n, (kl, gain) in enumerate(zip(KL, training(alpha, beta), strict=True), 1)
    ]
    return RunPath(seed, tuple(points))


def test_a_planted_training_curve_comes_back():
    found = fit_training(KL, training(0.9, 0.35))
    assert (found.alpha, found.beta) == pytest.approx((0.9, 0.35), abs=1e-12)
    assert found.rest == pytest.approx(0.0, abs=1e-12)


def test_a_planted_best_of_n_curve_comes_back():
    d = np.sqrt(KL)
    found = fit_best_of_n(KL, d * (1.2 - 0.25 * d))
    assert (found.alpha, found.beta) == pytest.approx((1.2, 0.25), abs=1e-12)


def test_the_top_is_where_no_kl_nearby_gives_more():
    found = Coefficients(0.9, 0.35, 0.0)
    top = peak_of_training(found)
    around = np.array([top * 0.999, top, top * 1.001])
    assert training(0.9, 0.35, around).argmax() == 1


@pytest.mark.parametrize("beta", [0.0, -0.2])
def test_a_curve_that_goes_on_rising_has_no_top(beta):
    assert math.isnan(peak_of_training(Coefficients(1.0, beta, 0.0)))


def test_an_arm_is_the_mean_of_its_seeds():
    found = arm_fit(ArmPaths("ppo", (path(0, 1.0, 0.5), path(1, 0.6, 0.3, start=-1.0)), ()))
    assert found is not None
    assert found.alpha.value == pytest.approx(0.8) and found.beta.value == pytest.approx(0.4)
    assert found.alpha.n == 2
    # Both curves have alpha / beta = 2, so their top is at d = e.
    assert found.peak == pytest.approx(math.exp(2))


def test_too_few_evaluations_and_no_first_one_give_no_fit():
    whole = path(0, 1.0, 0.5)
    assert path_fit(RunPath(0, whole.points[:3])) is None
    assert path_fit(RunPath(0, whole.points[1:])) is None
    assert arm_fit(ArmPaths("ppo", (RunPath(0, whole.points[1:]),), ())) is None


def test_best_of_n_is_fitted_from_two_on():
    sizes = [1, 2, 4, 8, 16]
    kl = [math.log(n) - (n - 1) / n for n in sizes]
    judge = [0.2 + math.sqrt(x) * (1.0 - 0.2 * math.sqrt(x)) for x in kl]
    curve = [
        BestOf(n, x, statistics.mean([0.0, 1.0]), statistics.mean([y, y]))
        for n, x, y in zip(sizes, kl, judge, strict=True)
    ]
    found = curve_fit(curve)
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((1.0, 0.2), abs=1e-9)
    assert curve_fit(curve[:3]) is None
