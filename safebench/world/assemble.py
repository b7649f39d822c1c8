"""Put together what a run's policy lives in: policy, prompts, reward and judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from safebench.settings import Settings
from safebench.world.checks import check_fit, longest_row
from safebench.world.models import load_with_notices
from safebench.world.policy import Policy, adapt
from safebench.world.probes import probe_length
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
    reward = load_proxy(settings, tokenizer, prompts, device)
    judge = load_judge(settings, tokenizer, prompts, device)
    policy = adapt(base, tokenizer, settings.model, settings.seed, device)
    policy.notices = (*notices, *policy.notices, *check_fit(settings, policy, prompts))
    policy = probe_length(policy, settings.model.name, longest_row(settings, policy, prompts))
    return World(policy, prompts, reward, judge)


def load_proxy(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, device: torch.device
) -> Reward:
    """Return the reward that is trained on; ``tokenizer`` is the policy's."""
    chosen = settings.reward
    return _scorer(settings, tokenizer, prompts, device, chosen.name, label=chosen.label)


def load_judge(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, device: torch.device
) -> Reward | None:
    """Return the judge, None where the settings name none."""
    chosen = settings.reward
    if not chosen.judge:
        return None
    option = "--set reward.judge_label="
    return _scorer(settings, tokenizer, prompts, device, chosen.judge, label=chosen.judge_label, option=option)


def _scorer(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    device: torch.device,
    name: str,
    **named: Any,
) -> Reward:
    return load_reward(
        name,
        device,
        trust=settings.trust_remote_code,
        apart=tokenizer.chat_template is not None,
        prompts=[*prompts.train, *prompts.heldout],
        **named,
    )
