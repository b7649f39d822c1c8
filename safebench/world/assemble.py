"""Put together what a run's policy lives in: policy, prompts, reward and judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from safebench.settings import Settings
from safebench.world.models import load_model
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


def assemble(settings: Settings, device: torch.device) -> World:
    """Load all parts; whatever is missing or unfit says so before any training starts."""
    prompts = load_prompts(settings)
    reward = load_reward(settings.reward.name, device)
    judge = load_reward(settings.reward.judge, device) if settings.reward.judge else None
    base, tokenizer = load_model(settings.model, settings.seed, device)
    return World(adapt(base, tokenizer, settings.model, settings.seed, device), prompts, reward, judge)
