"""What a stress preset does to training rewards: noise, and a change of their scale."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from safebench.models import seeding
from safebench.settings import Settings


def stressed(settings: Settings, rewards: Tensor, *, step: int, rows: Iterable[int], sigma0: float) -> Tensor:
    """Return the rewards [B] of a step (from 1) as training sees them; ``rows`` are their places in the whole batch.

    The noise has a standard deviation of ``reward.noise`` sigma_0, and depends on seed, step and row alone.
    """
    reward = settings.reward
    if reward.rescale_at is not None and step > reward.rescale_at * settings.update.steps:
        rewards = rewards * reward.rescale_by
    if reward.noise:
        draws = seeding.normals("reward", settings.seed, step, rows).to(rewards.device)
        rewards = rewards + reward.noise * sigma0 * draws
    return rewards
