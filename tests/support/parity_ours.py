"""Our loop on the tokens that TRL sampled, in TRL's order of mini-batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from safebench.algorithms.base import Experience, Measured
from safebench.config import schema as s
from safebench.models.assemble import World
from safebench.models.critic import Critic
from safebench.models.generation import Rollout
from safebench.models.policy import Policy, frozen_copy
from safebench.models.prompts import Prompts
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from safebench.training.update import Updater
from tests.support.parity_trl import (
    CLIP,
    GAMMA,
    KL_COEFFICIENT,
    LAMBDA,
    LORA,
    REPLY,
    TEMPERATURE,
    VALUE_CLIP,
    VALUE_COEFFICIENT,
    Case,
    Record,
    Update,
    parts,
)
from tests.support.tiny import END, PAD, tiny_settings, tiny_tokenizer


@dataclass
class Step:
    """What our loop made of one of TRL's batches."""

    experience: Experience
    losses: list[tuple[float, float]]
    """Policy and value loss of each optimizer step, the latter before its coefficient."""
    row: dict[str, float | str | None]
    weights: dict[str, Tensor] = field(default_factory=dict)


def run_ours(record: Record, **sections: dict[str, object]) -> list[Step]:
    """Run our loop from the weights that TRL began with; ``sections`` are merged over the settings."""
    loop = Following(record, settings(record.case, **sections))
    return [loop.follow() for _ in record.updates]


def settings(case: Case, **sections: dict[str, object]) -> s.Settings:
    """Say in our words what ``run_trl`` says in TRL's."""
    base: dict[str, dict[str, object]] = {
        "rollout": {"batch": case.batch, "reply_tokens": REPLY, "temperature": TEMPERATURE + 1e-7},
        "reward": {
            "kl_coefficient": KL_COEFFICIENT,
            "kl_estimator": case.estimator,
            "missing_eos_penalty": case.missing_eos_penalty or 0.0,
        },
        "advantage": {"gamma": GAMMA, "lam": LAMBDA, "whiten_rewards": case.whiten_rewards},
        "critic": {"body": "separate"},
        "loss": {"value_coefficient": VALUE_COEFFICIENT, "clip": CLIP, "value_clip": VALUE_CLIP},
        "update": {
            "steps": case.steps,
            "epochs": case.epochs,
            "minibatches": case.minibatches,
            "microbatch": case.batch // case.accumulation,
            "learning_rate": case.learning_rate,
            "schedule": "linear",
            "max_grad_norm": None,
            "critic_max_grad_norm": None,
        },
    }
    return tiny_settings("ppo", **{name: {**base.get(name, {}), **sections.get(name, {})} for name in base})


class Following(Loop):
    """THE loop, whose samples, scores and order of rows are TRL's."""

    def __init__(self, record: Record, settings: s.Settings) -> None:
        made = parts(record.case.dtype, record.case.likely)
        policy = start_policy(record, made.policy)
        critic = Critic(settings.critic, policy, 0, body=made.value.model, head=made.value.score)
        critic.online.to(record.case.dtype)
        super().__init__(
            settings,
            World(policy, Prompts([""], [""]), self, None),  # type: ignore[arg-type]
            Processes(settings.compute),
            critic=critic,
        )
        self.updater = FollowingUpdater(settings, policy, critic, self.algorithm, self.processes)
        self.updater.record = self.record = record
        self._seen: Experience | None = None

    name = "TRL's reward model"

    def score_rollout(self, rollout: Rollout) -> Tensor:
        """Return what TRL's reward model said of the batch."""
        return self._update.raw_scores

    @property
    def _update(self) -> Update:
        return self.record.updates[self.step_number - 1]

    def _sample(self) -> Rollout:
        return rollout(self._update)

    def _advantages(self, rollout: Rollout, measured: Measured, rewards: Tensor) -> Experience:
        self._seen = super()._advantages(rollout, measured, rewards)
        return self._seen

    def follow(self) -> Step:
        """Make one step and say what was in it."""
        self.updater.losses = []
        row, _ = self.step()
        assert self._seen is not None
        return Step(self._seen, self.updater.losses, row, self.weights())

    def weights(self) -> dict[str, Tensor]:
        """Return what is trained by TRL's names."""
        assert self.critic.body is not None
        critic = {f"model.{name}": p for name, p in self.critic.body.named_parameters()}
        critic["score.weight"] = next(self.critic.online.parameters())
        both = {"policy": self.world.policy.trainable(), "value": critic}
        return {f"{k}.{name}": p.detach().clone() for k, ps in both.items() for name, p in ps.items()}


class FollowingUpdater(Updater):
    """The loop's updater, with TRL's permutations and a note of each loss."""

    record: Record
    losses: list[tuple[float, float]]

    def _minibatches(self, step: int) -> Iterator[list[int]]:
        return minibatches(self.record, step)

    def _minibatch(self, *arguments: object, **more: object):  # type: ignore[no-untyped-def]
        sums = super()._minibatch(*arguments, **more)  # type: ignore[arg-type]
        self.losses.append((sums.terms["policy"], sums.terms["value"] / VALUE_COEFFICIENT))
        return sums


def minibatches(record: Record, step: int) -> Iterator[list[int]]:
    """Yield the rows of TRL's mini-batches of a step, from 1."""
    size = record.case.batch // record.case.minibatches
    for order in record.updates[step - 1].orders:
        for start in range(0, len(order), size):
            yield order[start : start + size]


def start_policy(record: Record, model: nn.Module) -> Policy:
    """Return the policy as TRL's trainer had it before the first batch."""
    reference = None if record.case.lora else frozen_copy(model)  # type: ignore[arg-type]
    if record.case.lora:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 by the attribute's old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            model = get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM"))  # type: ignore[arg-type]
    begin_as(record, model)
    return Policy(model.eval(), tiny_tokenizer(), (END,), reference)  # type: ignore[arg-type]


@torch.no_grad()
def begin_as(record: Record, model: nn.Module) -> None:
    """Give the policy's trained weights TRL's first values."""
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.copy_(record.start[f"policy.{name}"])


def rollout(update: Update, stops: bool = True) -> Rollout:
    """Return TRL's batch as a rollout of ours: a reply ends with its first end token, which belongs to it, if any."""
    is_end = (update.responses == END) & stops
    mask = is_end.cumsum(-1) - is_end.long() == 0
    assert bool((update.responses[mask] != PAD).all()), "the policy sampled padding, which TRL takes for an end"
    count = len(update.responses)
    return Rollout(
        prompts=[""] * count,
        replies=[""] * count,
        ids=torch.cat([update.queries, update.responses], 1),
        attention=torch.cat([update.queries != PAD, mask], 1).long(),
        mask=mask,
        ended=is_end.any(-1),
        truncated=0,
    )
