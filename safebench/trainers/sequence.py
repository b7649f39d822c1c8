"""Experience as SAFE's released code has it: one value and one advantage per sequence, read at its last position."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from safebench import settings as s
from safebench.models.generation import Rollout
from safebench.models.policy import Policy
from safebench.rl import masked
from safebench.rl.advantages import sequence_advantages, token_rewards
from safebench.rl.kl import sampled_kl
from safebench.trainers.critic import Critic
from safebench.trainers.experience import Experience, Measured


@torch.no_grad()
def appraise_sequences(
    settings: s.Settings,
    policy: Policy,
    critic: Critic,
    rollout: Rollout,
    measured: Measured,
    scores: Tensor,
    draws: tuple[int, int, int],
    add: masked.Add,
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
