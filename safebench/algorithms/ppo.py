"""The arms: what is an arm's own is its controller and its loss as named terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safebench.algorithms.base import Columns, ForwardOutput, Measurement, MiniBatch, Terms
from safebench.config import schema as s
from safebench.errors import UsageError
from safebench.rl.kl import sampled_kl
from safebench.rl.losses import clipped_surrogate, value_loss
from safebench.rl.value_heads import soft_min


class PPO:
    """PPO (Schulman et al. 2017): clipped surrogate and value loss; its KL control is in the reward."""

    names: tuple[str, ...] = ("policy", "value")
    needs_kl = False

    def __init__(self, settings: s.Settings) -> None:
        if settings.penalty is not None and type(self) is PPO:
            raise UsageError(f"the arm {settings.arm} has no KL penalty", "Remove `penalty`, or use the arm safe.")
        self.loss = settings.loss
        self.softmin_alpha = settings.critic.softmin_alpha
        self.needs_entropy = settings.loss.entropy_coefficient > 0
        if self.needs_entropy:
            self.names = (*self.names, "entropy")
        if settings.loss.kl_coefficient:
            self.names = (*self.names, "kl")

    def control(self, measurement: Measurement) -> dict[str, float | str]:
        """PPO has no controller."""
        return {}

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """PPO has no controller."""
        return {}, {}

    def terms(self, past: MiniBatch, present: ForwardOutput) -> Terms:
        """Return policy and value terms, and the entropy bonus and the KL if they have a coefficient."""
        loss = self.loss
        ratio = torch.exp(present.log_probs - past.log_probs)
        surrogate = clipped_surrogate(ratio, past.advantages, loss.clip)
        errors = value_loss(
            self._values(present.heads),
            self._values(past.heads),
            past.returns[..., None],
            clip=loss.value_clip,
            huber=loss.value_huber,
            combine=loss.value_combine,
        ).mean(-1)
        terms = {
            "policy": _share(surrogate, past.mask, past.token_count),
            "value": loss.value_coefficient * _share(errors, past.positions, past.position_count),
        }
        if present.entropy is not None:
            terms["entropy"] = -loss.entropy_coefficient * self._mean_entropy(past, present.entropy)
        if loss.kl_coefficient:
            k1 = sampled_kl(present.log_probs, past.reference_log_probs)
            terms["kl"] = loss.kl_coefficient * _share(k1, past.mask, past.token_count)
        return terms

    def _values(self, heads: Tensor) -> Tensor:
        """Return what learns the return, [..., 1 or H]."""
        return soft_min(heads, self.softmin_alpha)[..., None] if self.loss.regress == "softmin" else heads

    def _mean_entropy(self, past: MiniBatch, entropy: Tensor) -> Tensor:
        if self.loss.entropy_over == "all":
            return entropy.sum() / past.place_count
        return _share(entropy, past.mask, past.token_count)

    def dump(self) -> dict[str, Any]:
        """PPO has no state of its own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """PPO has no state of its own."""


def _share(x: Tensor, mask: Tensor, count: float) -> Tensor:
    """Return the kept entries' part of a mean over ``count`` entries."""
    return torch.where(mask, x, 0.0).sum() / count
