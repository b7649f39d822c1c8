"""Compute the loss terms of PPO and SAFE per token; the loop averages them over the batch's tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return -min(rho A, clip(rho, 1 - eps, 1 + eps) A) per token.

    Source: PPO (Schulman et al. 2017, arXiv 1707.06347, equation 7); SAFE, equation 4. ``ratio`` rho,
    ``advantages`` A and the result have the same shape.
    """
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clip_fraction(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return 1 per token where clipping binds (the clipped surrogate is the smaller one), else 0."""
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return (clipped < ratio * advantages).to(ratio.dtype)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip: float | None = 0.2,
    huber: float | None = None,
    combine: Literal["max", "mean"] = "max",
) -> Tensor:
    """Return the clipped value loss per token.

    V_clip = V_old + clip(V - V_old, +-clip); l(x) = x^2 / 2, or Huber's with delta = ``huber``.
    ``max``: max(l(V - R), l(V_clip - R)), as in TRL 1.12.0 and OpenAI baselines;
    ``mean``: (l(V - R) + l(V_clip - R)) / 2 (SAFE, equation 3). With ``clip`` None the loss is l(V - R).
    All shapes broadcast; values are in the units of the reward. If the values have a lower precision than the
    returns (a critic in bfloat16), clipping uses the precision of the values, and the error that of the returns.
    """
    loss = _value_error(values.to(returns.dtype), returns, huber)
    if clip is None:
        return loss
    near = old_values + (values - old_values).clamp(-clip, clip)
    clipped = _value_error(near.to(returns.dtype), returns, huber)
    return torch.maximum(loss, clipped) if combine == "max" else (loss + clipped) / 2


def value_clip_fraction(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return 1 per token where the clipped value is farther from the return than the value itself, else 0.

    At these tokens PPO's maximum takes the clipped error, and the value has no gradient (TRL's
    ``val/clipfrac_avg``). All shapes broadcast; values are in the units of the reward.
    """
    # Clamping the value itself, not its difference, leaves a value within the range bit-identical.
    near = values.clamp(old_values - clip, old_values + clip)
    return ((near - returns).abs() > (values - returns).abs()).to(returns.dtype)


def _value_error(values: Tensor, returns: Tensor, huber: float | None) -> Tensor:
    if huber is None:
        return (values - returns) ** 2 / 2
    return huber_loss(values, returns.expand_as(values), reduction="none", delta=huber)


def kl_penalty(
    tracked: float, threshold: float, gate: float, coefficient: float, *, asymmetric: bool = True
) -> tuple[float, float]:
    """Return the penalty's value and its slope in the tracked KL.

    L = g c max(0, KL_short - tau)^2 (SAFE, equation 10); slope = 2 g c max(0, KL_short - tau). Without
    ``asymmetric`` negative differences count too. KL is in nats per token.
    """
    excess = tracked - threshold
    if asymmetric:
        excess = max(excess, 0.0)  # this order of arguments keeps NaN
    return gate * coefficient * excess**2, 2 * gate * coefficient * excess


def straight_through(value: float, slope: float, x: Tensor) -> Tensor:
    """Return a scalar equal to ``value`` whose gradient is ``slope`` times that of ``x``.

    With the pair from ``kl_penalty`` this is equation 10 at KL_short + (KL - sg(KL)), where sg stops the gradient.
    The moving average gives the value and the current batch's KL gives the gradient. The current KL's small weight
    in the average therefore does not shrink the gradient.
    """
    return value + slope * (x - x.detach())
