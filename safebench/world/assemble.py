"""Put together what a run's policy lives in: policy, prompts, reward and judge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from safebench.settings import Settings
from safebench.world.models import load_with_notices
from safebench.world.policy import Policy, adapt
from safebench.world.prompts import Prompts, check_encoded, load_prompts
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
    prompts, trust = load_prompts(settings), settings.trust_remote_code
    base, tokenizer, notices = load_with_notices(settings.model, settings.seed, device, trust=trust)
    notices = (*notices, *check_encoded(prompts, tokenizer))
    load = partial(
        load_reward,
        device=device,
        trust=trust,
        apart=tokenizer.chat_template is not None,
        prompts=[*prompts.train, *prompts.heldout],
    )
    chosen = settings.reward
    reward = load(chosen.name, label=chosen.label)
    judge = None
    if chosen.judge:
        judge = load(chosen.judge, label=chosen.judge_label, option="--set reward.judge_label=")
    policy = adapt(base, tokenizer, settings.model, settings.seed, device)
    policy.notices = (*notices, *policy.notices)
    return World(policy, prompts, reward, judge)
