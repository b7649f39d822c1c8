"""Compute token rewards, advantages and returns from scores.

Shapes: B replies, R reply positions. A reply of L tokens (its end token included) fills positions
0 … L-1; ``values[:, t]`` is the value of the state before token t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Add = Callable[[Tensor], Tensor]
"""Adds a tensor over all processes; the identity when there is one."""


def identity(x: Tensor) -> Tensor:
    """Return ``x``, the sum over one process."""
    return x


def masked_mean(x: Tensor, mask: Tensor, add: Add = identity) -> Tensor:
    """Return the mean of ``x`` where ``mask`` is true, over all processes; a scalar in the units of ``x``.

    ``x`` and ``mask`` have one shape. An empty mask gives NaN.
    """
    kept = torch.where(mask, x, 0.0)
    sums = add(torch.stack([kept.sum(), mask.sum().to(x.dtype)]))
    return sums[0] / sums[1]


def masked_variance(x: Tensor, mask: Tensor, add: Add = identity) -> Tensor:
    """Return the unbiased variance of ``x`` where ``mask`` is true, over all processes.

    Two passes: sum (x - mean)^2 / (n - 1). One kept entry gives NaN.
    """
    mean = masked_mean(x, mask, add)
    squares = torch.where(mask, (x - mean) ** 2, 0.0)
    sums = add(torch.stack([squares.sum(), mask.sum().to(x.dtype)]))
    return sums[0] / (sums[1] - 1)


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False, add: Add = identity) -> Tensor:
    """Return (x - mean) / sqrt(variance + 1e-8) over the kept entries of all processes, zero elsewhere.

    Source: TRL 1.12.0, ``masked_whiten`` (variance unbiased). ``keep_mean`` adds the mean back.
    """
    mean, variance = masked_mean(x, mask, add), masked_variance(x, mask, add)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white + mean if keep_mean else white, 0.0)


@dataclass(frozen=True)
class Moments:
    """Count, mean and variance of the rewards seen so far (SAFE, equation 15)."""

    count: float = 1e-4
    mean: float = 0.0
    variance: float = 1.0

    def merge(self, batch: Tensor) -> Moments:
        """Return the moments with a batch [B] of rewards added.

        Chan, Golub, LeVeque 1979: with delta = mean_b - mean and n = n_a + n_b,
        mean += delta n_b / n, M2 = var n_a + var_b n_b + delta^2 n_a n_b / n, var = M2 / n.
        The batch's variance is unbiased; it is 0 for a single reward.
        """
        size = float(batch.numel())
        batch_mean = float(batch.double().mean())
        batch_variance = float(batch.double().var()) if size > 1 else 0.0
        count = self.count + size
        delta = batch_mean - self.mean
        squares = self.variance * self.count + batch_variance * size + delta**2 * self.count * size / count
        return Moments(count, self.mean + delta * size / count, squares / count)

    def normalise(self, rewards: Tensor) -> Tensor:
        """Return (r - mean) / (std + 1e-8), the shape of ``rewards``."""
        return rewards.sub(self.mean).div(float(self.variance**0.5) + 1e-8)


def token_rewards(scores: Tensor, mask: Tensor, kl: Tensor, kl_coefficient: float) -> Tensor:
    """Return the reward of each position: minus the coefficient times KL, plus the score after the last token.

    Source: TRL 1.12.0, ``PPOTrainer.train``: the score falls at position L, one past the last token, or
    at R-1 when the reply fills its length. ``scores`` [B], ``mask`` [B, R] true on reply tokens, ``kl``
    [B, R] per token in nats; returns [B, R] in the units of the score.
    """
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    end = mask.sum(-1).clamp(max=mask.shape[1] - 1)
    return rewards.scatter_add(1, end[:, None], scores[:, None].to(rewards.dtype))


def value_mask(mask: Tensor) -> Tensor:
    """Return the positions whose value is trained: the reply's tokens and the one after them, [B, R]."""
    lengths = mask.sum(-1, keepdim=True)
    return torch.arange(mask.shape[1], device=mask.device)[None] <= lengths


def gae(rewards: Tensor, values: Tensor, next_values: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantage estimates, [B, R] in the units of the reward.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t);  A_t = delta_t + gamma lam A_{t+1}
    (Schulman et al. 2016, arXiv 1506.02438, equations 11 to 16).
    ``next_values[:, t]`` is the bootstrap value of the state after token t, from a target network or from
    ``values`` shifted by one. It is zero after the last position.
    """
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages


def sequence_advantages(returns: Tensor, values: Tensor, add: Add = identity) -> Tensor:
    """Return one advantage per sequence, [B]: (A - mean A) / (std A + 1e-8) with A = R - V.

    Source: SAFE's released code. ``returns`` and ``values`` are [B]. Mean and unbiased standard deviation are over the
    sequences of all processes. A single sequence gives NaN.
    """
    advantages = returns - values
    kept = torch.ones_like(advantages, dtype=torch.bool)
    mean, variance = masked_mean(advantages, kept, add), masked_variance(advantages, kept, add)
    return (advantages - mean) / (variance.sqrt() + 1e-8)


def shift_left(values: Tensor) -> Tensor:
    """Return ``values`` [B, R] shifted one position to the left, zero in the last: the next state's value."""
    return torch.nn.functional.pad(values[:, 1:], (0, 1))
