"""Wraps TRL's own PPOTrainer, unmodified, as an algorithm with our prompts, policy and reward.

Entries of its log and the columns of the same definition (TRL 1.12.0, ``PPOTrainer.train``); a dash marks no column:

==================================  =========================  ====================================================
TRL's key                           column                     why
==================================  =========================  ====================================================
objective/kl                        –                          equals ``kl/sampled`` with k1, which we measure;
                                                               differs with k3
objective/entropy                   –                          equals ``reply/surprisal``, which we measure
objective/scores                    –                          ``reward/mean`` is before stress and the penalty for
                                                               a missing end token; TRL's number includes both
objective/rlhf_reward               reward/shaped              except with ``whiten_rewards``: TRL's number is from
                                                               before the whitening
objective/non_score_reward          –                          no such column
loss/policy_avg                     loss/policy                mean over a mini-batch's reply tokens, then updates
loss/value_avg · vf_coef            loss/value                 likewise, over value positions
their sum                           loss/total
policy/clipfrac_avg                 update/clip_fraction       mean over reply tokens
val/clipfrac_avg                    update/value_clip_fraction mean over value positions
policy/approxkl_avg                 –                          its mean includes padding
policy/entropy_avg                  –                          likewise, and it is the updated policy's
val/ratio, val/ratio_var            –                          likewise
val/num_eos_tokens                  –                          includes what follows the first end token
lr                                  update/learning_rate
eps, episode                        –                          our times exclude our measuring; we count episodes
==================================  =========================  ====================================================

Losses and fractions are filled only if TRL's means run over the same tokens as ours. With ``update.microbatch``, TRL
gives micro-batches of unequal length equal weight. If the end token is also the pad token, TRL's loss leaves it out.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from safebench.baselines import library
from safebench.baselines.wrapped import (
    SHARED_LIMITS,
    Log,
    Watch,
    Wrapped,
    cut_at_the_end,
    refuse_unsupported,
    shared_arguments,
)
from safebench.config.schema import Settings
from safebench.errors import UsageError
from safebench.models import seeding
from safebench.models.assemble import World
from safebench.models.generation import Encoded, encode
from safebench.models.policy import Policy
from safebench.training.distributed import Processes
from safebench.training.loop import Row


def value_model(policy: Policy, settings: Settings) -> PreTrainedModel:
    """Return a classifier with one output on a copy of the policy's base, as TRL's scripts load one.

    Its head has transformers' initialisation of a new head (normal, small), drawn from the run's seed.
    """
    config = copy.deepcopy(policy.base.config)
    config.num_labels = 1
    with seeding.seeded(policy.device, "critic", settings.seed):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    weights = policy.base.get_decoder().state_dict()
    kept = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    getattr(model, model.base_model_prefix).load_state_dict(kept)
    made: PreTrainedModel = model.to(policy.device, getattr(torch, settings.critic.dtype))
    return made


class Feeder:
    """Collates prompts as the loop encodes them, and remembers them in the order of the batches.

    TRL takes only the ids, from a loader that reads one batch ahead.
    """

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings, self.world = settings, world
        self.waiting: deque[Encoded] = deque()

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the ids of the examples' prompts, padded on the left."""
        prompts, tokenizer = self.world.prompts, self.world.policy.tokenizer
        rows = [int(example["row"]) for example in examples]
        encoded = encode(
            [prompts.train[row] for row in rows],
            [prompts.ids("train", row, tokenizer) for row in rows],
            self.settings.prompts.max_tokens,
            int(tokenizer.pad_token_id),
            torch.device("cpu"),
        )
        self.waiting.append(encoded)
        return {"input_ids": encoded.ids}


class RewardModel(nn.Module):
    """A classifier to TRL, with a backbone and a ``score`` head, which scores texts with the world's reward."""

    base_model_prefix = "backbone"

    def __init__(self, policy: Policy, feeder: Feeder, watch: Watch) -> None:
        """Score, through ``watch``, the prompts and replies that ``feeder`` has given to TRL."""
        super().__init__()
        self.backbone = _Backbone(policy, feeder, watch)
        self.score = nn.Identity()


class _Backbone(nn.Module):
    """Returns each row's reward as the hidden state at all of its positions, because TRL reads any one of them."""

    def __init__(self, policy: Policy, feeder: Feeder, watch: Watch) -> None:
        super().__init__()
        self.policy, self.feeder, self.watch = policy, feeder, watch
        self.done = 0
        """Rows of the first waiting batch that TRL has asked for; TRL asks in chunks."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        """Return the rewards of prompts and replies [b, T], as hidden states [b, T, 1]."""
        tokenizer, batch = self.policy.tokenizer, self.feeder.waiting[0]
        pad, end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        ids = input_ids.masked_fill(~attention_mask.bool(), pad)
        rows, width = slice(self.done, self.done + len(ids)), batch.ids.shape[1]
        prompts = Encoded(
            batch.texts[rows],
            batch.ids[rows].to(ids.device),
            batch.attention[rows].to(ids.device),
            0 if self.done else batch.truncated,
        )
        if not torch.equal(ids[:, :width], prompts.ids):
            raise RuntimeError("TRL asks for the rewards of other prompts than it was given")
        replies = [cut_at_the_end(row, end, pad) for row in ids[:, width:].tolist()]
        self.done += len(ids)
        if self.done == len(batch.texts):
            self.feeder.waiting.popleft()
            self.done = 0
        rewards = self.watch.score(prompts, replies).to(ids.device)
        return BaseModelOutput(hidden_states=(rewards[:, None, None].expand(*ids.shape, 1),))


LIMITS = SHARED_LIMITS | {
    "update.critic_learning_rate": None,
    "update.max_grad_norm": None,
    "update.critic_max_grad_norm": None,
    "advantage.whiten": True,
    "critic.body": "separate",
    "critic.heads": "single",
    "critic.head": "linear",
    "critic.layer_norm": False,
    "critic.detach": True,
    "critic.init": "small",
    "critic.target_decay": None,
    "critic.target_follows": "batch",
    "loss.value_huber": None,
    "loss.value_combine": "max",
    "loss.regress": "heads",
}
"""Values that the settings must have for TRL's PPO; it never clips gradients, whatever its configuration says."""


def trl_ppo(settings: Settings, world: World, processes: Processes) -> Wrapped:
    """Return TRL's PPO as a learner. Raises ``UsageError`` for settings that TRL would ignore."""
    update = settings.update
    same = update.critic_learning_rate == update.learning_rate
    refuse_unsupported(settings, LIMITS | ({"update.critic_learning_rate": update.learning_rate} if same else {}))
    if settings.loss.value_clip is None:
        raise UsageError("TRL's PPO always clips the value loss", "Use --set loss.value_clip=0.2.")
    if update.microbatch is not None and update.minibatches > 1:
        raise UsageError(
            "TRL's PPO ignores update.minibatches where it accumulates gradients",
            "Use --set update.microbatch=null, or --set update.minibatches=1.",
        )
    return Wrapped(settings, world, processes, _PPO(settings, world))


class _PPO:
    """Makes TRL's PPOTrainer, and converts its log."""

    logs_per_step = 1

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings, self.world = settings, world
        self.config, self.trainer_type = library.ppo(settings.algorithm)

    def trainer(self, watch: Watch, folder: str) -> Any:
        """Return the trainer, with the world's policy and training prompts."""
        policy = self.world.policy
        feeder = Feeder(self.settings, self.world)
        separate = isinstance(policy.reference, PreTrainedModel)
        return self.trainer_type(
            args=self.config(**self._arguments(folder)),
            processing_class=policy.tokenizer,
            model=policy.model,
            ref_model=policy.reference if separate else None,
            reward_model=RewardModel(policy, feeder, watch),
            value_model=value_model(policy, self.settings),
            train_dataset=Dataset.from_dict({"row": list(range(len(self.world.prompts.train)))}),
            data_collator=feeder,
        )

    def _arguments(self, folder: str) -> dict[str, Any]:
        settings, update, loss = self.settings, self.settings.update, self.settings.loss
        batch = settings.rollout.batch
        rows = update.microbatch or batch
        if batch % rows:
            raise UsageError(
                f"rollout.batch ({batch}) must be a multiple of update.microbatch ({rows}) for TRL",
                "Use --set update.microbatch=null.",
            )
        reference = self.world.policy.reference
        return shared_arguments(settings, folder, self.world.policy.device) | {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": batch // rows,
            "num_mini_batches": update.minibatches,
            "num_ppo_epochs": update.epochs,
            "total_episodes": batch * update.steps,
            "local_rollout_forward_batch_size": settings.rollout.chunk or batch,
            "num_sample_generations": 0,
            "response_length": settings.rollout.reply_tokens,
            "stop_token": "eos",
            "missing_eos_penalty": settings.reward.missing_eos_penalty or None,
            "whiten_rewards": settings.advantage.whiten_rewards,
            "kl_coef": settings.reward.kl_coefficient,
            "kl_estimator": settings.reward.kl_estimator,
            "cliprange": loss.clip,
            "cliprange_value": loss.value_clip,
            "vf_coef": loss.value_coefficient,
            "gamma": settings.advantage.gamma,
            "lam": settings.advantage.lam,
            "ref_adapter_name": reference if isinstance(reference, str) else None,
        }

    def columns(self, logs: list[Log], row: Row) -> Row:
        """Return the columns that the log of a batch determines by our definitions."""
        (log,) = logs
        found: Row = {"update/learning_rate": log["lr"]}
        if not self.settings.advantage.whiten_rewards:
            found["reward/shaped"] = log["objective/rlhf_reward"]
        tokenizer = self.world.policy.tokenizer
        if self.settings.update.microbatch is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
            policy, value = log["loss/policy_avg"], self.settings.loss.value_coefficient * log["loss/value_avg"]
            found |= {
                "loss/policy": policy,
                "loss/value": value,
                "loss/total": policy + value,
                "update/clip_fraction": log["policy/clipfrac_avg"],
                "update/value_clip_fraction": log["val/clipfrac_avg"],
            }
        return found
