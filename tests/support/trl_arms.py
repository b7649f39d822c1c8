"""TRL's trainers wrapped, on the tiny policy, and what they sampled and logged on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from safebench import registry
from safebench.algorithms.base import Measured
from safebench.baselines import trl_ppo, wrapped
from safebench.config import schema as s
from safebench.models.assemble import World, adapt
from safebench.models.critic import reply_states
from safebench.models.generation import Rollout
from safebench.models.policy import Policy
from safebench.recording.jsonl import Sample
from safebench.rl.kl import token_statistics
from safebench.training.distributed import Processes
from safebench.training.loop import Row
from safebench.training.measure import scatter_to_mask
from tests.support.tiny import CPU, tiny_policy, tiny_settings, tiny_world

END = "n"
"""A letter that the tiny policy likes: four replies in ten of eight tokens end with it."""
REPLY = 8
PPO: dict[str, dict[str, Any]] = {
    "reward": {"kl_coefficient": 0.05},
    "update": {"max_grad_norm": None, "critic_max_grad_norm": None},
    "critic": {"body": "separate"},
}


def early_letters(prompts: list[str], replies: list[str]) -> list[float]:
    """Like letters from the front of the alphabet, and the prompt's last one best."""
    return [
        sum(word in "abcdefgh" for word in reply.split()) / 3 + reply.split().count(prompt[-1])
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def ending_policy(*, lora: bool = True, pad_is_end: bool = False, gradient_checkpointing: bool = False) -> Policy:
    """Return the tiny policy with a tokenizer whose end token it samples."""
    policy = tiny_policy(gradient_checkpointing=gradient_checkpointing)
    if not lora:
        base = policy.model.unload()
        policy = adapt(base, policy.tokenizer, s.Model(lora=None), 0, CPU)
    policy.tokenizer.eos_token = END
    if pad_is_end:
        policy.tokenizer.pad_token = END
    policy.stop_ids = (int(policy.tokenizer.eos_token_id),)
    return policy


def settings(arm: str, **sections: Any) -> s.Settings:
    """Return settings for eight replies of up to eight tokens a step, that TRL's trainer behind ``arm`` can follow."""
    base: dict[str, Any] = {"rollout": {"reply_tokens": REPLY}, "update": {"steps": 2, "epochs": 2}}
    for part in (PPO if arm == "trl-ppo" else {}), sections:
        for name, section in part.items():
            base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return tiny_settings(arm, **base)


@dataclass
class Seen:
    """What a wrapped trainer did."""

    learner: wrapped.Wrapped
    rows: list[Row] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)
    batches: list[tuple[Rollout, Measured, Tensor]] = field(default_factory=list)
    """What each batch was described by: the rollout, its measures, and its rewards."""
    logs: list[dict[str, Any]] = field(default_factory=list)
    """TRL's own, one per log."""
    trainer: Any = None
    values: Any = None
    """PPO's value model."""

    @property
    def world(self) -> World:
        """The world it learned in."""
        return self.learner.world


def learn(
    chosen: s.Settings, world: World | None = None, go_on: Callable[[Row, list[Sample]], bool] = lambda *_: True
) -> Seen:
    """Let an arm learn, and return what was seen."""
    world = world or tiny_world(ending_policy(), early_letters)
    seen = Seen(registry.find("algorithms", chosen.algorithm).load()(chosen, world, Processes(chosen.compute)))
    method = seen.learner.method
    describe, make, log, values = wrapped.describe, method.trainer, seen.learner.logged, trl_ppo.value_model

    def described(rollout: Rollout, measured: Measured, rewards: Tensor, processes: Processes) -> Row:
        seen.batches.append((rollout, measured, rewards))
        return describe(rollout, measured, rewards, processes)

    def made(watch: Any, folder: str) -> Any:
        seen.trainer = make(watch, folder)
        return seen.trainer

    def logged(logs: dict[str, Any]) -> None:
        seen.logs.append(logs)
        log(logs)

    def valued(policy: Policy, given: s.Settings) -> Any:
        seen.values = values(policy, given)
        return seen.values

    def report(row: Row, samples: list[Sample]) -> bool:
        seen.rows.append(row)
        seen.samples.append(samples)
        return go_on(row, samples)

    with (
        mock.patch.object(wrapped, "describe", described),
        mock.patch.object(method, "trainer", made),
        mock.patch.object(seen.learner, "logged", logged),
        mock.patch.object(trl_ppo, "value_model", valued),
    ):
        seen.learner.learn(report)
    return seen


def log_probs(policy: Policy, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Return the present policy's log-probabilities of the replies, [B, R], with gradient."""
    mask = rollout.mask
    states = reply_states(policy.hidden_states(rollout.ids, rollout.attention), mask.shape[1])
    log_p, *_ = token_statistics(
        states[mask], rollout.tokens[mask], policy.output, with_entropy=False, temperature=temperature
    )
    return scatter_to_mask(log_p, mask)


@torch.no_grad()
def values_of(model: Any, rollout: Rollout) -> Tensor:
    """Return a classifier's value of the state before each reply token, [B, R]."""
    positions = (rollout.attention.cumsum(-1) - 1).clamp(min=0)
    body = getattr(model, model.base_model_prefix)
    states = body(input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=positions).last_hidden_state
    values: Tensor = model.score(reply_states(states, rollout.mask.shape[1])).squeeze(-1)
    return values
