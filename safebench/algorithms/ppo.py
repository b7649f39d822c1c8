"""Implement PPO (Schulman et al. 2017, arXiv 1707.06347) on the shared loop; other algorithms override parts of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from safebench.algorithms.base import Columns, Experience, ForwardOutput, Loss, Measurement, MiniBatch, ScoredBatch
from safebench.config import schema as s
from safebench.errors import UsageError
from safebench.rl.advantages import gae, token_rewards, value_mask, whiten
from safebench.rl.kl import sampled_kl
from safebench.rl.losses import clip_fraction, clipped_surrogate, value_clip_fraction, value_loss
from safebench.rl.value_heads import soft_min


class PPO:
    """Clipped surrogate and value loss; the KL control is in the reward."""

    names: tuple[str, ...] = ("policy", "value")
    token_columns: tuple[str, ...] = ("update/clip_fraction", "update/approx_kl", "update/ratio_mean")
    value_columns: tuple[str, ...] = ("update/value_clip_fraction",)
    needs_kl = False
    reads: Literal["token", "last"] = "token"
    over_padding = False
    has_penalty = False
    """Whether the algorithm uses the settings of ``penalty``."""

    def __init__(self, settings: s.Settings) -> None:
        if settings.penalty is not None and not self.has_penalty:
            raise UsageError(
                f"the algorithm {settings.algorithm} has no KL penalty", "Remove `penalty`, or use the algorithm safe."
            )
        self.settings = settings
        self.needs_entropy = settings.loss.entropy_coefficient > 0
        if self.needs_entropy:
            self.names = (*self.names, "entropy")
        if settings.loss.kl_coefficient:
            self.names = (*self.names, "kl")

    def control(self, measurement: Measurement) -> Columns:
        """Return no columns: PPO has no controller."""
        return {}

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Return no columns: PPO has no controller."""
        return {}, {}

    @torch.no_grad()
    def advantages(self, batch: ScoredBatch) -> Experience:
        """Compute token rewards, generalised advantage estimates and returns, all [B, R], from the scores [B]."""
        settings, critic, rollout, measured = self.settings.advantage, batch.critic, batch.rollout, batch.measured
        mask, positions = rollout.mask, value_mask(rollout.mask)
        features = critic.features(measured.states, rollout.ids, rollout.attention)
        heads = critic.online(features) * positions[..., None]
        values = torch.where(positions, critic.pessimistic(heads), 0.0)
        rewards = self.rewards(batch, mask)
        if settings.whiten_rewards:
            rewards = whiten(rewards, positions, keep_mean=True, add=batch.add)
        next_values = critic.next_values(features, values, positions)
        advantages = gae(rewards, values, next_values, settings.gamma, settings.lam)
        returns = advantages + values
        if settings.whiten:
            advantages = whiten(advantages, mask, add=batch.add)
        kept = torch.where(mask, advantages, 0.0)
        return Experience(rollout, measured, heads, values, kept, returns, positions, rewards)

    def rewards(self, batch: ScoredBatch, mask: Tensor) -> Tensor:
        """Return each position's reward [B, R]: minus the weighted sampled KL, plus the score after the last token."""
        reward, measured = self.settings.reward, batch.measured
        kl = sampled_kl(measured.log_probs, measured.reference_log_probs, reward.kl_estimator)
        return token_rewards(batch.scores, mask, kl, reward.kl_coefficient)

    def loss(self, past: MiniBatch, present: ForwardOutput) -> Loss:
        """Return the policy and value terms, and the entropy and KL terms if their coefficients are nonzero."""
        loss = self.settings.loss
        ratio = torch.exp(present.log_probs - past.log_probs)
        errors = value_loss(
            self.values(present.heads),
            self.values(past.heads),
            past.returns[..., None],
            clip=loss.value_clip,
            huber=loss.value_huber,
            combine=loss.value_combine,
        ).mean(-1)
        terms = {
            "policy": share(self.surrogate(ratio, past.advantages), past.mask, past.token_count),
            "value": loss.value_coefficient * share(errors, past.positions, past.position_count),
        }
        if present.entropy is not None:
            terms["entropy"] = -loss.entropy_coefficient * self.mean_entropy(past, present.entropy)
        if loss.kl_coefficient:
            k1 = sampled_kl(present.log_probs, past.reference_log_probs)
            terms["kl"] = loss.kl_coefficient * share(k1, past.mask, past.token_count)
        return Loss(terms, *self.describe(past, present))

    def surrogate(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return each token's policy loss [b, R] from the ratio of new to old probability."""
        return clipped_surrogate(ratio, advantages, self.settings.loss.clip)

    def values(self, heads: Tensor) -> Tensor:
        """Return the values that are regressed onto the return, [..., 1 or H]."""
        alpha = self.settings.critic.softmin_alpha
        return soft_min(heads, alpha)[..., None] if self.settings.loss.regress == "softmin" else heads

    def mean_entropy(self, past: MiniBatch, entropy: Tensor) -> Tensor:
        """Return the micro-batch's share of the mean entropy, nats per token."""
        return share(entropy, past.mask, past.token_count)

    @torch.no_grad()
    def describe(self, past: MiniBatch, present: ForwardOutput) -> tuple[dict[str, float], dict[str, float]]:
        """Return the columns that describe the update, as sums over reply tokens and over trained values."""
        loss = self.settings.loss
        log_ratio = (present.log_probs - past.log_probs)[past.mask]
        ratio, advantages = log_ratio.exp(), past.advantages[past.mask]
        per_token = {
            "update/clip_fraction": float(clip_fraction(ratio, advantages, loss.clip).sum()),
            "update/approx_kl": float((log_ratio**2).sum()) / 2,
            "update/ratio_mean": float(ratio.sum()),
        }
        cut = 0.0
        if loss.value_clip is not None:
            found = value_clip_fraction(present.heads, past.heads, past.returns[..., None], loss.value_clip).mean(-1)
            cut = float(found[past.positions].sum())
        return per_token, {"update/value_clip_fraction": cut}

    def dump(self) -> dict[str, Any]:
        """Return an empty state: PPO has none."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing: PPO has no state."""


def share(x: Tensor, mask: Tensor, count: float) -> Tensor:
    """Return the kept entries' share of a mean over ``count`` entries."""
    return torch.where(mask, x, 0.0).sum() / count
