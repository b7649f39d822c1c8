"""A batch of experience: what was sampled, what it scored, and what the sampling policy says of it."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safebench.config import schema as s
from safebench.models.generation import Cut, Rollout
from safebench.models.policy import Policy
from safebench.rl.advantages import Add, gae, sequence_advantages, token_rewards, value_mask, whiten
from safebench.rl.kl import sampled_kl, token_statistics
from safebench.training.critic import Critic, reply_states


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
    graph: Tensor | None = None
    """[B, T, h]: all states of the policy with their graph, in the order of ``Rollout.groups``; for one backward pass
    through the policy as it was, where it was asked for."""


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
def measure(
    policy: Policy, rollout: Rollout, temperature: float, chunk: int | None = None, *, keep_graph: bool = False
) -> Measured:
    """Measure replies under policy and reference, ``chunk`` rows at a time, like lengths together.

    ``keep_graph``: keep the policy's pass for the first update's gradient; all rows must then share it.
    """
    groups = rollout.groups(chunk)
    if keep_graph and len(groups) != 1:
        raise ValueError(f"one pass can be kept, not {len(groups)}")
    pieces, graph = [], None
    for rows in groups:
        cut = rollout.cut(rows)
        with policy.training() if keep_graph else contextlib.nullcontext(), torch.set_grad_enabled(keep_graph):
            hidden = policy.hidden_states(cut.ids, cut.attention)
        pieces.append(_measure_rows(policy, cut, temperature, hidden.detach()))
        graph = hidden if keep_graph else None
    width = rollout.mask.shape[1]
    back = torch.tensor([row for rows in groups for row in rows], device=rollout.ids.device).argsort()
    wide = [torch.cat([_widen(part, width) for part in parts])[back] for parts in zip(*pieces, strict=True)]
    return replace(Measured(*wide), graph=graph)


def _widen(x: Tensor, width: int) -> Tensor:
    """Pad [b, R', ...] with zeros to [b, R, ...]."""
    wide = x.new_zeros(x.shape[0], width, *x.shape[2:])
    wide[:, : x.shape[1]] = x
    return wide


def _measure_rows(policy: Policy, cut: Cut, temperature: float, hidden: Tensor) -> tuple[Tensor, ...]:
    """Measure the rows of one pass, whose states under the policy are ``hidden`` [b, T, h]."""
    mask, replies = cut.mask, cut.mask.shape[1]
    states = reply_states(hidden, replies)
    with policy.as_reference():
        reference = reply_states(policy.hidden_states(cut.ids, cut.attention), replies)
    tokens, other = cut.tokens[mask], policy.reference_output
    found = token_statistics(
        states[mask],
        tokens,
        policy.output,
        reference=reference[mask],
        reference_output=other,
        temperature=temperature,
    )
    assert found.entropy is not None
    assert found.kl is not None
    assert found.reference_log_probs is not None
    measured = (found.log_probs, found.reference_log_probs, found.kl, found.entropy)
    return *(scatter_to_mask(x, mask) for x in measured), reference, states


def scatter_to_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Put the values of N kept tokens back at their places in [b, R], zero elsewhere; gradients flow."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


@torch.no_grad()
def compute_advantages(
    settings: s.Settings, critic: Critic, rollout: Rollout, measured: Measured, scores: Tensor, add: Add
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
        rewards = whiten(rewards, positions, keep_mean=True, add=add)
    advantages = gae(
        rewards,
        values,
        critic.next_values(features, values, positions),
        settings.advantage.gamma,
        settings.advantage.lam,
    )
    returns = advantages + values
    if settings.advantage.whiten:
        advantages = whiten(advantages, mask, add=add)
    return Experience(
        rollout, measured, heads, values, torch.where(mask, advantages, 0.0), returns, positions, rewards
    )


@torch.no_grad()
def compute_sequence_advantages(
    settings: s.Settings,
    policy: Policy,
    critic: Critic,
    rollout: Rollout,
    measured: Measured,
    scores: Tensor,
    draws: tuple[int, int, int],
    add: Add,
) -> Experience:
    """Turn scores [B] into one return and one advantage per sequence, each token's its own sequence's.

    A = standardised (R - V); V is read at the last position of the batch's prompt and reply, which is padding
    where a row ends early, and under dropout, as the updates have it. ``draws`` is (seed, step, first row).
    In the experience positions [B, 1] are the sequences, and the rollout tells its padding by the pad token.
    """
    rollout = rollout.padded(int(policy.tokenizer.pad_token_id))
    measured = _kept(measured, rollout.mask, policy.output.weight.dtype)
    kl = sampled_kl(measured.log_probs, measured.reference_log_probs, settings.reward.kl_estimator)
    rewards = token_rewards(scores, rollout.mask, kl, settings.reward.kl_coefficient)
    returns = rewards.sum(-1)
    heads = _heads(settings, policy, critic, rollout, draws)
    values = critic.pessimistic(heads).squeeze(-1)
    advantages = returns - values
    if settings.advantage.whiten:
        advantages = sequence_advantages(returns, values, add)
    return Experience(
        rollout,
        measured,
        heads,
        values[:, None],
        torch.where(rollout.mask, advantages[:, None], 0.0),
        returns[:, None],
        torch.ones_like(rollout.mask[:, :1]),
        returns[:, None],
    )


def _kept(measured: Measured, mask: Tensor, dtype: torch.dtype) -> Measured:
    """Return what was measured of the positions of ``mask`` [B, R'], log-probabilities as the release keeps them.

    It takes the logarithm in the model's own precision before the updates and in float32 during them, so that in
    bfloat16 the first ratio is off by rounding.
    """
    narrow = {name: value[:, : mask.shape[1]] for name, value in vars(measured).items() if name != "graph"}
    for name in ("log_probs", "reference_log_probs"):
        narrow[name] = narrow[name].to(dtype).to(narrow[name].dtype)
    return dataclasses.replace(measured, **narrow)


def _heads(
    settings: s.Settings, policy: Policy, critic: Critic, rollout: Rollout, draws: tuple[int, int, int]
) -> Tensor:
    """Return each head's value before the update, [B, 1, H]."""
    seed, step, first = draws
    groups = rollout.groups(settings.update.microbatch)
    pieces = []
    with policy.training():
        for rows in groups:
            cut = rollout.cut(rows)
            hidden = policy.dropped_states(cut.ids, cut.attention, seed, step, 0, first + rows[0])
            read = critic.read(hidden, cut.mask.shape[1])
            pieces.append(critic.online(critic.features(read, cut.ids, cut.attention)))
    back = torch.tensor([row for rows in groups for row in rows], device=rollout.ids.device).argsort()
    return torch.cat(pieces)[back]
