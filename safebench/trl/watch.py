"""What TRL's log keys need beyond our columns: a loop and arms that remember it. Nothing of the learning differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safebench.rl.kl import sampled_kl
from safebench.trainers.arms import PPO, SAFE, Columns, Past, Present, Terms
from safebench.trainers.experience import Experience, Measured
from safebench.trainers.loop import Loop
from safebench.world.rollout import Rollout


class _Watched:
    """Keeps the mean ratio of each update of a step; of this process's tokens over those of all processes."""

    ratio = 0.0

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)  # type: ignore[call-arg]
        self.ratios: list[float] = []

    def terms(self, past: Past, present: Present) -> Terms:
        """Add the micro-batch's ratios to those of its update."""
        ratios = torch.exp(present.log_probs.detach() - past.log_probs)[past.mask]
        self.ratio += float(ratios.sum()) / past.token_count
        terms: Terms = super().terms(past, present)  # type: ignore[misc]
        return terms

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Close the update."""
        self.ratios.append(self.ratio)
        self.ratio = 0.0
        found: tuple[dict[str, float], Columns] = super().control_update(kl)  # type: ignore[misc]
        return found


class WatchedPPO(_Watched, PPO):
    """PPO, watched."""


class WatchedSAFE(_Watched, SAFE):
    """SAFE, watched."""


@dataclass(frozen=True)
class Batch:
    """Sums over a batch's replies, all processes."""

    kl: float
    """Of the estimator that the reward uses, all reply tokens."""
    scores: float
    """Rewards less the penalties for a missing stop token."""
    end_tokens: float


class WatchedLoop(Loop):
    """The loop, and what TRL logs of a batch.

    ``missing`` is the penalty on replies without the end token ``end_id``, to be set where no token stops replies:
    the loop's own penalty is on replies that did not stop.
    """

    missing: float = 0.0
    end_id: int | None = None
    batch = Batch(0.0, 0.0, 0.0)

    def _appraise(self, rollout: Rollout, measured: Measured, rewards: Tensor) -> Experience:
        reward = self.settings.reward
        ends = (rollout.tokens == (-1 if self.end_id is None else self.end_id)) & rollout.mask
        scores = rewards - self.missing * (~ends.any(-1)).to(rewards.dtype)
        penalised = scores - reward.missing_eos_penalty * (~rollout.ended).to(scores.dtype)
        kl = sampled_kl(measured.log_probs, measured.reference_log_probs, reward.kl_estimator)
        sums = torch.stack([kl[rollout.mask].double().sum(), penalised.double().sum(), ends.double().sum()])
        self.batch = Batch(*self.processes.add(sums).tolist())
        self.arm.ratios = []  # type: ignore[attr-defined]
        return super()._appraise(rollout, measured, scores)

    def ratio_variance(self) -> float:
        """Return the variance of the mean ratio over the step's updates (unbiased); 0 where there was one."""
        ratios: list[float] = self.arm.ratios  # type: ignore[attr-defined]
        means = self.processes.add(torch.tensor(ratios, dtype=torch.float64, device=self.world.policy.device))
        return float(means.var()) if len(ratios) > 1 else 0.0
