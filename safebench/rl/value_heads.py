"""Implement value heads on hidden states: a single head, or SAFE's double heads with their soft minimum."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn


def soft_min(values: Tensor, alpha: float) -> Tensor:
    """Return -alpha log(mean_i exp(-V_i / alpha)) over the last axis, the heads.

    Source: SAFE, equation 1, for any number of heads. With two: min <= V <= min(min + alpha ln 2, mean);
    alpha -> 0 gives the minimum, alpha -> infinity the mean. ``values`` [..., H] and ``alpha`` > 0 are in
    the units of the reward; the result is [...]. The value of a single head is returned unchanged.
    """
    if values.shape[-1] == 1:
        return values.squeeze(-1)
    return -alpha * (torch.logsumexp(-values / alpha, dim=-1) - math.log(values.shape[-1]))


class Draws(Protocol):
    """Draws random numbers into tensors (``models.seeding.Draws``)."""

    def normal(self, target: Tensor, deviation: float) -> None:
        """Fill ``target`` with normal numbers of mean zero."""
        ...

    def uniform(self, target: Tensor, bound: float) -> None:
        """Fill ``target`` with numbers from [-bound, bound)."""
        ...


class ValueHeads(nn.Module):
    """H independent heads on a hidden state of width h, each with one value; float32 for any type of the policy.

    SAFE, equation 2: LayerNorm, then per head Linear(h, h/4), GELU, Linear(h/4, 1). The ``linear`` form
    is PPO's usual Linear(h, 1). The weights of the last layer are drawn from ``draws`` with a small standard deviation
    (0.02, as in Qwen2), so that the heads differ and no value is large before the first update. With ``small`` false
    every layer is initialised as in torch.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp: bool,
        layer_norm: bool,
        draws: Draws,
        small: bool = True,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.heads = nn.ModuleList(_head(width, mlp, draws) for _ in range(heads))
        if not small:
            for layer in self.heads.modules():
                if isinstance(layer, nn.Linear):
                    _as_torch(layer, draws)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the values [..., H] of hidden states [..., h]."""
        hidden = self.norm(hidden.to(next(self.heads.parameters()).dtype))
        return torch.cat([head(hidden) for head in self.heads], dim=-1)


def _head(width: int, mlp: bool, draws: Draws) -> nn.Module:
    if not mlp:
        return _linear(width, 1, 0.02, draws)
    inner = max(1, width // 4)
    return nn.Sequential(
        _linear(width, inner, 1 / math.sqrt(width), draws), nn.GELU(), _linear(inner, 1, 0.02, draws)
    )


def _linear(inputs: int, outputs: int, std: float, draws: Draws) -> nn.Linear:
    # Built without initial values, because nothing may be drawn from the global generator.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    draws.normal(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


def _as_torch(layer: nn.Linear, draws: Draws) -> None:
    """Draw weights and biases uniformly from +-1/sqrt(inputs), torch's default for a linear layer."""
    bound = 1 / math.sqrt(layer.in_features)
    draws.uniform(layer.weight, bound)
    draws.uniform(layer.bias, bound)


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Move the target's weights: target <- decay target + (1 - decay) online (SAFE, equation 14)."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - Var(R - V) / Var(R) over the kept entries: 1 is perfect, 0 is no better than the mean.

    The result is NaN if the returns do not vary or fewer than two are kept.
    """
    kept = returns[mask]
    if kept.numel() < 2 or float(kept.var()) == 0.0:
        return math.nan
    return 1 - float((kept - values[mask]).var() / kept.var())
