"""Token rewards, advantages and returns: by hand, by definition, and as TRL computes them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from safebench.rl.advantages import gae, shift_left, token_rewards, value_mask

share = st.floats(0, 1)


def doubles(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lengths_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


@st.composite
def episodes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw rewards and values, [B, R]."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    numbers = st.lists(st.floats(-10, 10), min_size=math.prod(shape), max_size=math.prod(shape))
    return doubles(draw(numbers)).reshape(shape), doubles(draw(numbers)).reshape(shape)


def test_the_score_falls_after_the_last_token_and_kl_on_each() -> None:
    mask = lengths_mask([1, 2, 3], 3)
    kl = doubles([[0.2, 9.0, 9.0], [0.2, -0.4, 9.0], [0.2, -0.4, 0.6]])
    rewards = token_rewards(doubles([10.0, 20.0, 30.0]), mask, kl, 0.5)
    # Lengths 1 and 2 have a position after their end; length 3 fills the row, so its score joins the last token.
    torch.testing.assert_close(rewards, doubles([[-0.1, 10.0, 0.0], [-0.1, 0.2, 20.0], [-0.1, 0.2, 29.7]]))


def test_without_coefficient_the_score_is_all() -> None:
    rewards = token_rewards(doubles([1.5]), lengths_mask([2], 4), doubles([[1.0, 2.0, 3.0, 4.0]]), 0.0)
    assert rewards.tolist() == [[0, 0, 1.5, 0]]


def test_scores_take_the_type_of_the_rewards() -> None:
    rewards = token_rewards(torch.tensor([1.0]), lengths_mask([1], 2), torch.zeros(1, 2, dtype=torch.float64), 0.1)
    assert rewards.dtype == torch.float64


def test_values_are_trained_one_position_further_than_the_reply() -> None:
    assert value_mask(lengths_mask([1, 2, 3], 3)).tolist() == [
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]


def test_shift_left() -> None:
    assert shift_left(doubles([[1, 2, 3]])).tolist() == [[2, 3, 0]]


def test_gae_by_hand() -> None:
    # r = (1, 0, 2), V = (0.5, 1, 1.5), gamma 0.9, lambda 0.5:
    # delta_2 = 2 - 1.5 = 0.5;        delta_1 = 0.9 * 1.5 - 1 = 0.35;   delta_0 = 1 + 0.9 * 1 - 0.5 = 1.4
    # A_2 = 0.5;  A_1 = 0.35 + 0.45 * 0.5 = 0.575;                      A_0 = 1.4 + 0.45 * 0.575 = 1.65875
    rewards, values = doubles([[1, 0, 2]]), doubles([[0.5, 1, 1.5]])
    advantages = gae(rewards, values, shift_left(values), 0.9, 0.5)
    torch.testing.assert_close(advantages, doubles([[1.65875, 0.575, 0.5]]), rtol=1e-15, atol=0)


def test_gae_bootstraps_from_the_next_values_it_is_given() -> None:
    # A target's values (2, 3, 0) in place of the online ones: delta = (1 + 1.8 - 0.5, 2.7 - 1, 0.5).
    rewards, values = doubles([[1, 0, 2]]), doubles([[0.5, 1, 1.5]])
    deltas = gae(rewards, values, doubles([[2, 3, 0]]), 0.9, 0.0)
    torch.testing.assert_close(deltas, doubles([[2.3, 1.7, 0.5]]), rtol=1e-15, atol=0)


@given(episodes(), share)
def test_at_lambda_zero_it_is_the_td_error(episode: tuple[Tensor, Tensor], gamma: float) -> None:
    rewards, values = episode
    following = shift_left(values)
    torch.testing.assert_close(
        gae(rewards, values, following, gamma, 0.0), rewards + gamma * following - values, rtol=0, atol=0
    )


@given(episodes(), share)
def test_at_lambda_one_it_is_the_monte_carlo_return_less_the_value(
    episode: tuple[Tensor, Tensor], gamma: float
) -> None:
    rewards, values = episode
    steps = rewards.shape[1]
    returns = torch.stack(
        [sum(gamma**k * rewards[:, t + k] for k in range(steps - t)) for t in range(steps)],  # type: ignore[misc]
        dim=1,
    )
    torch.testing.assert_close(
        gae(rewards, values, shift_left(values), gamma, 1.0), returns - values, rtol=1e-12, atol=1e-12
    )


@given(episodes(), share, share)
def test_it_is_the_lambda_return_less_the_value(
    episode: tuple[Tensor, Tensor], gamma: float, lam: float
) -> None:
    """G^lambda = (1 - lambda) sum_n lambda^(n-1) G^(n), the last n-step return taking the rest of the weight."""
    rewards, values = episode
    steps = rewards.shape[1]
    padded = torch.cat([values, torch.zeros(len(values), 1, dtype=torch.float64)], dim=1)

    def n_step(t: int, n: int) -> Tensor:
        seen = torch.stack([gamma**k * rewards[:, t + k] for k in range(n)]).sum(0)
        return seen + gamma**n * padded[:, t + n]

    expected = torch.empty_like(rewards)
    for t in range(steps):
        longest = steps - t
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, longest)] + [lam ** (longest - 1)]
        parts = [weight * n_step(t, n) for n, weight in enumerate(weights, 1)]
        expected[:, t] = torch.stack(parts).sum(0) - values[:, t]
    torch.testing.assert_close(
        gae(rewards, values, shift_left(values), gamma, lam), expected, rtol=1e-11, atol=1e-11
    )


def test_a_perfect_critic_leaves_no_advantage() -> None:
    rewards = doubles([[1, -2, 3, 0.5]])
    values = doubles([[2.5, 1.5, 3.5, 0.5]])
    assert not gae(rewards, values, shift_left(values), 1.0, 0.95).any()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_rewards_and_advantages_are_trls(estimator: str) -> None:
    """Row by row and in plain numbers, what PPOTrainer.train of TRL 1.12.0 does.

    There n is the index of the last kept token: log-probs are INVALID beyond n, values zero beyond n + 1, the
    score falls at n + 1, or at n when that would be past the row; the recursion then runs over the whole row.
    """
    generator = torch.Generator().manual_seed(3)
    lengths, width, coefficient, gamma, lam = [1, 3, 4, 2], 4, 0.05, 0.98, 0.9
    log_p = -3 * torch.rand(4, width, generator=generator, dtype=torch.float64)
    log_r = -3 * torch.rand(4, width, generator=generator, dtype=torch.float64)
    values = torch.randn(4, width, generator=generator, dtype=torch.float64)
    scores = torch.randn(4, generator=generator, dtype=torch.float64)
    expected = []
    for row, length in enumerate(lengths):
        last = length - 1
        log_ratio = [float(log_r[row, t] - log_p[row, t]) if t <= last else 0.0 for t in range(width)]
        kl = [-x if estimator == "k1" else (math.exp(x) - 1) - x for x in log_ratio]
        rewards = [-coefficient * x for x in kl]
        rewards[last + 1 if last + 1 < width else last] += float(scores[row])
        v = [float(values[row, t]) if t <= last + 1 else 0.0 for t in range(width)] + [0.0]
        advantages, running = [0.0] * width, 0.0
        for t in reversed(range(width)):
            running = rewards[t] + gamma * v[t + 1] - v[t] + gamma * lam * running
            advantages[t] = running
        expected.append(advantages)

    from safebench.rl.kl import sampled_kl

    mask = lengths_mask(lengths, width)
    kept = torch.where(value_mask(mask), values, 0.0)
    rewards = token_rewards(scores, mask, sampled_kl(log_p, log_r, estimator), coefficient)  # type: ignore[arg-type]
    torch.testing.assert_close(
        gae(rewards, kept, shift_left(kept), gamma, lam), doubles(expected), rtol=1e-12, atol=1e-14
    )
