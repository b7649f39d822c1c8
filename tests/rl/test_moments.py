"""Running moments of rewards (equation 15): merged batches against the whole, and what they normalise to."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safebench.rl.advantages import Moments

batches = st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=8), min_size=1, max_size=6)


def merged(parts: list[list[float]], start: Moments | None = None) -> Moments:
    moments = start or Moments()
    for part in parts:
        moments = moments.merge(torch.tensor(part, dtype=torch.float64))
    return moments


def test_starts_at_the_published_prior() -> None:
    assert Moments() == Moments(count=1e-4, mean=0.0, variance=1.0)


def test_by_hand() -> None:
    # From count 2, mean 1, variance 3, add 4 and 8: batch mean 6, unbiased variance 8; delta 5, n 4.
    # mean 1 + 5 * 2 / 4 = 3.5; M2 = 3 * 2 + 8 * 2 + 25 * 2 * 2 / 4 = 47; variance 47 / 4.
    assert Moments(2.0, 1.0, 3.0).merge(torch.tensor([4.0, 8.0])) == Moments(4.0, 3.5, 11.75)


def test_the_first_batch_nearly_replaces_the_prior() -> None:
    # n = 2.0001, mean 6 * 2 / n, M2 = 1e-4 + 8 * 2 + 36 * 1e-4 * 2 / n.
    moments = Moments().merge(torch.tensor([4.0, 8.0]))
    n = 2.0001
    assert moments.count == pytest.approx(n, rel=1e-15)
    assert moments.mean == pytest.approx(12 / n, rel=1e-15)
    assert moments.variance == pytest.approx((1e-4 + 16 + 72e-4 / n) / n, rel=1e-15)


@given(batches)
def test_merging_equals_the_concatenation(parts: list[list[float]]) -> None:
    """Sum of squares about the mean, n var, is the concatenation's, but for two things that are known exactly.

    The prior weighs as 1e-4 rewards of mean 0 and variance 1; and each batch of b rewards counts its
    unbiased variance b times rather than b - 1 times (equation 15 says so), which adds that variance once.
    """
    moments = merged(parts)
    everything = torch.tensor([r for part in parts for r in part], dtype=torch.float64)
    count = len(everything) + 1e-4
    mean = float(everything.sum()) / count
    squares = float((everything - mean).square().sum()) + 1e-4 * (1 + mean**2)
    surplus = sum(float(torch.tensor(part, dtype=torch.float64).var()) for part in parts if len(part) > 1)
    assert moments.count == pytest.approx(count, rel=1e-12)
    assert moments.mean == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert moments.variance == pytest.approx((squares + surplus) / count, rel=1e-9)


@given(batches)
def test_the_order_of_batches_does_not_matter(parts: list[list[float]]) -> None:
    one, other = merged(parts), merged(parts[::-1])
    assert one.mean == pytest.approx(other.mean, rel=1e-9, abs=1e-12)
    assert one.variance == pytest.approx(other.variance, rel=1e-9)


@given(batches)
def test_the_variance_stays_positive(parts: list[list[float]]) -> None:
    assert merged(parts).variance > 0


def test_single_rewards_have_a_variance_between_them() -> None:
    # 1, 3 one by one, weightless prior: mean 2, M2 = 2, variance 1. The unbiased variance of one reward is NaN.
    moments = merged([[1.0], [3.0]], Moments(0.0, 0.0, 0.0))
    assert moments == Moments(2.0, 2.0, 1.0)


def test_a_reward_that_is_not_a_number_shows() -> None:
    assert math.isnan(Moments().merge(torch.tensor([1.0, math.nan])).variance)


def test_normalise_by_hand() -> None:
    # (5 - 3) / (2 + 1e-8)
    assert float(Moments(9.0, 3.0, 4.0).normalise(torch.tensor([5.0], dtype=torch.float64))) == 2 / (2 + 1e-8)


def test_constant_rewards_normalise_to_nothing_large() -> None:
    """Equal rewards leave the prior's trace alone: r (1 - n_b / n) over a small deviation, not r / 1e-8."""
    rewards = torch.full((32,), 0.7, dtype=torch.float64)
    normal = Moments().merge(rewards).normalise(rewards)
    assert float(normal.abs().max()) < 0.01


def test_normalised_rewards_have_mean_zero_and_deviation_one() -> None:
    rewards = torch.linspace(-3, 5, 33, dtype=torch.float64)
    normal = Moments().merge(rewards).normalise(rewards)
    # The prior, 1e-4 of 33 rewards, moves both by about 3e-6.
    assert float(normal.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normal.std()) == pytest.approx(1, abs=1e-5)


def test_they_are_plain_numbers_and_come_back_from_them() -> None:
    moments = merged([[1.0, 2.0], [5.0]])
    assert Moments(**asdict(moments)) == moments
    assert all(type(value) is float for value in asdict(moments).values())
