"""Put together what a run's policy lives in: policy, prompts, reward and judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from safebench.settings import Settings
from safebench.world.models import load_with_notices
from safebench.world.policy import Policy, adapt
from safebench.world.prompts import Prompts, load_prompts
from safebench.world.rewards import Reward, load_reward


@dataclass(frozen=True)
class World:
    """Everything outside the algorithm."""

    policy: Policy
    prompts: Prompts
    reward: Reward
    judge: Reward | None

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of these, each once."""
        parts = (self.policy, self.prompts, self.reward, self.judge)
        return tuple(dict.fromkeys(text for part in parts for text in getattr(part, "notices", ())))


def assemble(settings: Settings, device: torch.device) -> World:
    """Load all parts; whatever is missing or unfit says so before any training starts."""
    prompts = load_prompts(settings)
    reward = load_reward(settings.reward.name, device)
    judge = load_reward(settings.reward.judge, device) if settings.reward.judge else None
    base, tokenizer, notices = load_with_notices(settings.model, settings.seed, device)
    policy = adapt(base, tokenizer, settings.model, settings.seed, device)
    policy.notices = (*notices, *policy.notices)
    return World(policy, prompts, reward, judge)
