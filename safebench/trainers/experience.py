"""A batch of experience: what was sampled, what it scored, and what the sampling policy says of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safebench import settings as s
from safebench.rl import masked
from safebench.rl.advantages import gae, token_rewards, value_mask
from safebench.rl.kl import sampled_kl, token_statistics
from safebench.trainers.critic import Critic, reply_states
from safebench.world.policy import Policy
from safebench.world.rollout import Cut, Rollout


@dataclass(frozen=True)
class Measured:
    """What policy and reference say of sampled replies; all [B, R], zero outside the reply."""

    log_probs: Tensor
    reference_log_probs: Tensor
    kl: Tensor
    """Exact KL to the reference, nats."""
    entropy: Tensor
    reference_states: Tensor
    """[B, R, h]: with the output embedding they give the reference's distribution again."""
    states: Tensor
    """[B, R, h] of the policy, without gradient."""


@dataclass(frozen=True)
class Experience:
    """Everything the epochs of updates need. B rows, R positions, H value heads."""

    rollout: Rollout
    measured: Measured
    heads: Tensor
    """[B, R, H]: each head's value before the update."""
    values: Tensor
    advantages: Tensor
    returns: Tensor
    positions: Tensor
    """[B, R]: positions whose value is trained."""
    shaped: Tensor
    """[B, R]: the reward that the advantages see."""


@torch.no_grad()
def measure(policy: Policy, rollout: Rollout, temperature: float, chunk: int | None = None) -> Measured:
    """Measure replies under policy and reference, ``chunk`` rows at a time, like lengths together."""
    groups = rollout.groups(chunk)
    pieces = [_measure_rows(policy, rollout.cut(rows), temperature) for rows in groups]
    width = rollout.mask.shape[1]
    back = torch.tensor([row for rows in groups for row in rows], device=rollout.ids.device).argsort()
    return Measured(
        *(torch.cat([_widen(part, width) for part in parts])[back] for parts in zip(*pieces, strict=True))
    )


def _widen(x: Tensor, width: int) -> Tensor:
    """Pad [b, R', ...] with zeros to [b, R, ...]."""
    wide = x.new_zeros(x.shape[0], width, *x.shape[2:])
    wide[:, : x.shape[1]] = x
    return wide


def _measure_rows(policy: Policy, cut: Cut, temperature: float) -> tuple[Tensor, ...]:
    mask, replies = cut.mask, cut.mask.shape[1]
    states = reply_states(policy.hidden_states(cut.ids, cut.attention), replies)
    with policy.as_reference():
        reference = reply_states(policy.hidden_states(cut.ids, cut.attention), replies)
    tokens, other = cut.tokens[mask], policy.reference_weight
    log_p, entropy, kl = token_statistics(
        states[mask],
        tokens,
        policy.output_weight,
        reference=reference[mask],
        reference_weight=other,
        temperature=temperature,
    )
    log_r, _, _ = token_statistics(reference[mask], tokens, other, with_entropy=False, temperature=temperature)
    assert entropy is not None
    assert kl is not None
    return *(spread(x, mask) for x in (log_p, log_r, kl, entropy)), reference, states


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Put the values of N kept tokens back at their places in [b, R], zero elsewhere; gradients flow."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


@torch.no_grad()
def appraise(
    settings: s.Settings, critic: Critic, rollout: Rollout, measured: Measured, scores: Tensor, add: masked.Add
) -> Experience:
    """Turn scores [B] into token rewards, advantages and returns."""
    mask = rollout.mask
    positions = value_mask(mask)
    features = critic.features(measured.states, rollout.ids, rollout.attention)
    heads = critic.online(features) * positions[..., None]
    values = torch.where(positions, critic.pessimistic(heads), 0.0)
    kl = sampled_kl(measured.log_probs, measured.reference_log_probs, settings.reward.kl_estimator)
    rewards = token_rewards(scores, mask, kl, settings.reward.kl_coefficient)
    if settings.advantage.whiten_rewards:
        rewards = masked.whiten(rewards, positions, keep_mean=True, add=add)
    advantages = gae(
        rewards,
        values,
        critic.next_values(features, values, positions),
        settings.advantage.gamma,
        settings.advantage.lam,
    )
    returns = advantages + values
    if settings.advantage.whiten:
        advantages = masked.whiten(advantages, mask, add=add)
    return Experience(
        rollout, measured, heads, values, torch.where(mask, advantages, 0.0), returns, positions, rewards
    )
