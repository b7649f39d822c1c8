"""Running mean and variance of everything seen, for reward normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
        The batch's variance is the unbiased one; a single reward has none and counts as zero.
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


