"""Put together what a run's policy lives in: policy, prompts, reward and judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safebench import settings as s
from safebench.settings import Settings
from safebench.world import adapters, probes
from safebench.world.audit import Auditor
from safebench.world.checks import check_fit, longest_row
from safebench.world.forward import no_dropout, recompute
from safebench.world.models import load_with_notices
from safebench.world.policy import Policy, frozen_copy, stop_ids
from safebench.world.prompts import Prompts, check_encoded, load_prompts
from safebench.world.rewards import Reward, load_reward


@dataclass(frozen=True)
class World:
    """Everything outside the algorithm."""

    policy: Policy
    prompts: Prompts
    reward: Reward
    judge: Reward | None
    auditor: Auditor | None = None

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
    policy = probes.probe_length(policy, settings.model.name, longest_row(settings, policy, prompts))
    auditor = Auditor(device) if settings.evaluation.audits else None
    return World(policy, prompts, reward, judge, auditor)


def adapt(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: s.Model, seed: int, device: torch.device
) -> Policy:
    """Return the policy that the settings make of ``base``: with a fresh LoRA adapter, or trained as a whole.

    The adapter starts as in peft (B zero, A uniform by Kaiming), drawn from the run's seed alone. The model's
    own dropout is off for good, in rollouts and updates alike: the ratio is 1 before the first update, unless
    the settings ask for dropout in the adapter. Without an adapter the reference is a frozen copy of ``base``.
    Raises ``BadResource`` where the model's own logits are not those that the run would use (``probes``).
    """
    no_dropout(base)
    base.to(device)
    reference = frozen_copy(base) if model.lora is None else None
    if model.lora is None:
        adapted, notices = base.requires_grad_(True), tuple[str, ...]()
    else:
        adapted, notices = adapters.attach(base, model.name, model.lora, seed)
    adapted.eval()
    if model.gradient_checkpointing:
        recompute(adapted)
    adapted.to(device)
    policy = Policy(
        adapted, tokenizer, stop_ids(base, tokenizer), reference, model.mixed_precision, notices=notices
    )
    return probes.probe(policy, model.name)


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
