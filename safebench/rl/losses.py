"""Loss terms of PPO and SAFE, per token; the loop takes their means over the batch's tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return -min(rho A, clip(rho, 1 - eps, 1 + eps) A) per token.

    Source: PPO (Schulman et al. 2017, arXiv 1707.06347, equation 7); SAFE, equation 4. ``ratio`` rho and
    ``advantages`` A have one shape, which the result has too.
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
    ``mean``: (l(V - R) + l(V_clip - R)) / 2 (SAFE, equation 3). ``clip`` None leaves l(V - R).
    All shapes broadcast; values in the units of the reward. Where the values are coarser than the returns, as
    a critic in bfloat16 gives them, the clip is in their precision and the error in that of the returns.
    """
    loss = _value_error(values.to(returns.dtype), returns, huber)
    if clip is None:
        return loss
    near = old_values + (values - old_values).clamp(-clip, clip)
    clipped = _value_error(near.to(returns.dtype), returns, huber)
    return torch.maximum(loss, clipped) if combine == "max" else (loss + clipped) / 2


def value_clip_fraction(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return 1 per token where the clipped value is farther from the return than the value itself, else 0.

    There PPO's maximum takes the clipped error, and the value has no gradient (TRL's ``val/clipfrac_avg``). All
    shapes broadcast; values in the units of the reward.
    """
    # Clamped as it is, a value that the clip leaves alone comes out to the bit.
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
    ``asymmetric`` the difference counts on both sides. KL in nats per token.
    """
    excess = tracked - threshold
    if asymmetric:
        excess = max(excess, 0.0)  # in this order a KL that is not a number stays one
    return gate * coefficient * excess**2, 2 * gate * coefficient * excess


def straight_through(value: float, slope: float, x: Tensor) -> Tensor:
    """Return a scalar equal to ``value`` whose gradient is ``slope`` times that of ``x``.

    With ``kl_penalty``'s pair this is equation 10 at KL_short + (KL - sg(KL)): the moving average gives
    the value, the current batch's KL the gradient, so that the average's small weight does not shrink it.
    """
    return value + slope * (x - x.detach())
