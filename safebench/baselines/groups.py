"""Wraps TRL's GRPOTrainer and RLOOTrainer as algorithms: they use groups of replies to one prompt and no critic.

Entries of their logs and the columns of the same definition (TRL 1.12.0, ``_compute_loss`` and
``_generate_and_score_completions``); a dash marks no column:

========================  ====================  ==========================================================
TRL's key                 column                why
========================  ====================  ==========================================================
loss                      loss/total            the whole loss of an update, mean over the step's updates
                          loss/policy           only GRPO's, if it is the clipped surrogate alone and its
                                                mean runs over the batch's reply tokens: no KL in it, one
                                                mini-batch. RLOO has one ratio per reply
grad_norm                 grad/norm             before clipping, mean over the step's updates
clip_ratio/region_mean    update/clip_fraction  only GRPO's, a share of tokens; RLOO's is one of replies
learning_rate             update/learning_rate  the rate that the step's first update used
reward                    reward/shaped         GRPO's; RLOO's less beta times the KL, which we measure
reward_std                –                     ``reward/std`` is before stress
kl, entropy               –                     of the updated policy too; we measure the sampling policy's
completions/…, num_tokens –                     we measure lengths; TRL counts prompts among its tokens
frac_reward_zero_std      –                     no such column
========================  ====================  ==========================================================
"""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from safebench.baselines import library
from safebench.baselines.wrapped import SHARED_LIMITS, Log, Watch, Wrapped, refuse_unsupported, shared_arguments
from safebench.config.schema import Advantage, Critic, Settings
from safebench.errors import UsageError
from safebench.models.assemble import World
from safebench.models.generation import encode
from safebench.models.prompts import as_messages
from safebench.training.distributed import Processes
from safebench.training.loop import Row

GROUP = 8
"""Replies to one prompt: GRPO's default in TRL; RLOO uses it too, so that both see equally many prompts."""

LIMITS = SHARED_LIMITS | {
    "reward.missing_eos_penalty": 0.0,
    "reward.kl_estimator": "k1",
    "rollout.chunk": None,
    "critic": Critic().model_dump(),
    "advantage": Advantage().model_dump(),
}
"""Values that the settings must have: there is no critic, and each group determines its own advantages."""


def grpo(settings: Settings, world: World, processes: Processes) -> Wrapped:
    """Return TRL's GRPO as a learner. Raises ``UsageError`` for settings that TRL would ignore."""
    refuse_unsupported(settings, LIMITS | {"reward.kl_coefficient": 0.0})
    return Wrapped(settings, world, processes, _Group(settings, world, "GRPO"))


def rloo(settings: Settings, world: World, processes: Processes) -> Wrapped:
    """Return TRL's RLOO as a learner. Raises ``UsageError`` for settings that TRL would ignore."""
    refuse_unsupported(settings, LIMITS)
    if settings.model.lora is None and settings.model.random_weights and settings.reward.kl_coefficient:
        raise UsageError(
            "TRL's RLOO loads its reference from where the model lies, and random weights lie nowhere",
            "Train an adapter: --set model.lora.rank=8.",
        )
    return Wrapped(settings, world, processes, _Group(settings, world, "RLOO"))


class _Group:
    """Makes one of the two trainers, and converts its log."""

    def __init__(self, settings: Settings, world: World, name: str) -> None:
        self.settings, self.world, self.name = settings, world, name
        self.config, self.trainer_type = library.group(settings.algorithm, name)
        self.logs_per_step = settings.update.epochs * settings.update.minibatches
        update, batch = settings.update, settings.rollout.batch
        mini = batch // update.minibatches
        self.rows = update.microbatch or mini
        if batch % GROUP or mini % self.rows:
            raise UsageError(
                f"{settings.algorithm} needs a batch ({batch}) of whole groups of {GROUP} replies, and mini-batches "
                f"({mini}) of whole micro-batches ({self.rows})",
                f"Use --set rollout.batch={max(1, batch // GROUP) * GROUP} --set update.microbatch=null.",
            )

    def trainer(self, watch: Watch, folder: str) -> Any:
        """Return the trainer, with the world's policy and training prompts."""
        tokenizer: PreTrainedTokenizerBase = copy.deepcopy(self.world.policy.tokenizer)
        tokenizer.truncation_side = "left"

        def reward(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
            return self._score(watch, completion_ids, row)

        return self.trainer_type(
            args=self.config(**self._arguments(folder)),
            processing_class=tokenizer,
            model=self.world.policy.model,
            reward_funcs=[reward],
            train_dataset=self._prompts(),
        )

    def _arguments(self, folder: str) -> dict[str, Any]:
        settings, update = self.settings, self.settings.update
        batch = settings.rollout.batch
        arguments = shared_arguments(settings, folder, self.world.policy.device) | {
            "per_device_train_batch_size": self.rows,
            "gradient_accumulation_steps": batch // update.minibatches // self.rows,
            "generation_batch_size": batch,
            "num_generations": GROUP,
            "num_iterations": update.epochs,
            "max_steps": update.steps * self.logs_per_step,
            "max_completion_length": settings.rollout.reply_tokens,
            "max_grad_norm": update.max_grad_norm or 0.0,
            "epsilon": settings.loss.clip,
            "remove_unused_columns": False,
        }
        if self.name == "RLOO":
            arguments["beta"] = settings.reward.kl_coefficient
        if self.world.policy.tokenizer.chat_template is not None:
            arguments["chat_template_kwargs"] = {"truncation": True, "max_length": settings.prompts.max_tokens}
        return arguments

    def _prompts(self) -> Dataset:
        """Return the training prompts, each with its number, in a form that TRL encodes as the loop does."""
        texts, tokenizer = self.world.prompts.train, self.world.policy.tokenizer
        rows = list(range(len(texts)))
        if tokenizer.chat_template is not None:
            return Dataset.from_dict({"prompt": [as_messages(text) for text in texts], "row": rows})
        longest = max(len(self.world.prompts.ids("train", row, tokenizer)) for row in rows)
        if longest > self.settings.prompts.max_tokens:
            raise UsageError(
                f"TRL's {self.name} cannot cut prompts for a model without a chat template, and the longest has "
                f"{longest} tokens",
                f"Use --set prompts.max_tokens={longest}.",
            )
        return Dataset.from_dict({"prompt": texts, "row": rows})

    def _score(self, watch: Watch, replies: list[list[int]], rows: list[int]) -> list[float]:
        prompts, policy = self.world.prompts, self.world.policy
        encoded = encode(
            [prompts.train[row] for row in rows],
            [prompts.ids("train", row, policy.tokenizer) for row in rows],
            self.settings.prompts.max_tokens,
            int(policy.tokenizer.pad_token_id),
            policy.device,
        )
        rewards: Tensor = watch.score(encoded, replies)
        return rewards.tolist()

    def columns(self, logs: list[Log], row: Row) -> Row:
        """Return the columns that the logs of a step's updates determine by our definitions."""
        update, token_level = self.settings.update, self.name == "GRPO"
        found: Row = {
            "loss/total": _mean(logs, "loss"),
            "grad/norm": _mean(logs, "grad_norm"),
            "update/learning_rate": logs[0].get("learning_rate"),
        }
        if token_level:
            found["reward/shaped"] = logs[0].get("reward")
        else:
            found["reward/shaped"] = self._less_kl(logs[0].get("reward"), row)
        if token_level and update.minibatches == 1:
            found["loss/policy"] = found["loss/total"]
        if token_level and update.microbatch is None:
            found["update/clip_fraction"] = _mean(logs, "clip_ratio/region_mean")
        return found

    def _less_kl(self, reward: float | None, row: Row) -> float | None:
        sampled = row["kl/sampled"]
        assert isinstance(sampled, float)
        return None if reward is None else reward - self.settings.reward.kl_coefficient * sampled


def _mean(logs: list[Log], key: str) -> float | None:
    values = [log[key] for log in logs if log.get(key) is not None]
    return fmean(values) if len(values) == len(logs) else None
