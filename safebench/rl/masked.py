"""Means, variances and whitening over the entries that a mask keeps, over all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Add = Callable[[Tensor], Tensor]
"""Adds a tensor over all processes; the identity when there is one."""


def alone(x: Tensor) -> Tensor:
    """Add over one process: return ``x``."""
    return x


def masked_mean(x: Tensor, mask: Tensor, add: Add = alone) -> Tensor:
    """Return the mean of ``x`` where ``mask`` is true, over all processes; a scalar in the units of ``x``.

    ``x`` and ``mask`` have one shape. An empty mask gives NaN.
    """
    kept = torch.where(mask, x, 0.0)
    sums = add(torch.stack([kept.sum(), mask.sum().to(x.dtype)]))
    return sums[0] / sums[1]


def masked_variance(x: Tensor, mask: Tensor, add: Add = alone) -> Tensor:
    """Return the unbiased variance of ``x`` where ``mask`` is true, over all processes.

    Two passes: sum (x - mean)^2 / (n - 1). One kept entry gives NaN.
    """
    mean = masked_mean(x, mask, add)
    squares = torch.where(mask, (x - mean) ** 2, 0.0)
    sums = add(torch.stack([squares.sum(), mask.sum().to(x.dtype)]))
    return sums[0] / (sums[1] - 1)


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False, add: Add = alone) -> Tensor:
    """Return (x - mean) / sqrt(variance + 1e-8) over the kept entries of all processes, zero elsewhere.

    Source: TRL 1.12.0, ``masked_whiten`` (variance unbiased). ``keep_mean`` adds the mean back.
    """
    mean, variance = masked_mean(x, mask, add), masked_variance(x, mask, add)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white + mean if keep_mean else white, 0.0)
