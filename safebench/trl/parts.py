"""The drop-in trainers' parts, put together from what the user gives: loop, models, data, callbacks, state."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import DatasetDict, IterableDatasetDict
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, enable_full_determinism
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, PrinterCallback
from transformers.utils import logging

from safebench.config.schema import Compute
from safebench.errors import UsageError
from safebench.models.assemble import World, longest_row
from safebench.models.libraries import naming
from safebench.models.loading import padding_within
from safebench.models.probes import probe_length
from safebench.training.distributed import Processes
from safebench.trl import config, logs
from safebench.trl.config import fill_sizes, is_safe, settings_of
from safebench.trl.data import Rows, read_prompts
from safebench.trl.logs import WatchedLoop
from safebench.trl.models import (
    PolicyAndValueModel,
    apart,
    make_critic,
    make_policy,
    text_tokenizer,
)
from safebench.trl.optimizers import make_optimizers
from safebench.trl.rewards import FunctionReward, make_reward


@dataclass
class EpisodeState(TrainerState):  # type: ignore[misc]
    """transformers' state, and the number of replies sampled."""

    episode: int = 0


class Parts:
    """What a trainer consists of, by TRL's constructor; ``trainer.PPOTrainer`` says what the arguments are."""

    _name: ClassVar[str] = "PPO"
    _tags: ClassVar[tuple[str, ...]] = ("trl", "ppo")
    _made = False
    """Whether all parts are there."""
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(
        self,
        args: Any,
        processing_class: Any,
        model: Any,
        ref_model: Any,
        reward_model: Any,
        train_dataset: Any,
        value_model: Any,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        peft_config: Any = None,
    ) -> None:
        self._check_kind(args)
        config.check_fields(args)
        if train_dataset is None:
            raise UsageError("train_dataset is None", "Bring prompts to reply to.")
        self.args, self.processing_class, self.data_collator = args, processing_class, data_collator
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        if args.full_determinism:
            enable_full_determinism(args.seed)
        logging.set_verbosity(args.get_process_log_level())
        tokenizer = text_tokenizer(processing_class)
        self._rows = Rows("train_dataset", train_dataset, tokenizer, data_collator)
        self._heldout = self._held_out(eval_dataset)
        if not self._heldout and (args.eval_on_start or args.eval_strategy != "no"):
            raise UsageError(
                "evaluation is asked for (eval_strategy, eval_on_start), and eval_dataset is None",
                "Bring held-out prompts, or set eval_strategy to no.",
            )
        self._make(tokenizer, model, ref_model, reward_model, value_model, peft_config, optimizers)
        self._make_callbacks(callbacks or ())
        self.hub_model_id: str | None = None
        self._steps: list[logs.Row] = []
        if args.should_save:
            os.makedirs(args.output_dir, exist_ok=True)
        self._made = True

    def _check_kind(self, args: Any) -> None:
        if is_safe(args):
            raise UsageError("PPOTrainer got a SAFEConfig", "Use SAFETrainer, or a PPOConfig.")

    def _named(self, dataset: Any) -> dict[str, Rows]:
        """Return the rows to evaluate on, by name: of a data set, a dictionary, a name in the trainer's, or all."""
        if dataset is None:
            return self._heldout
        if not isinstance(dataset, str):
            return self._held_out(dataset)
        if dataset not in self._heldout:
            raise UsageError(f"eval_dataset has no {dataset!r}; it has {', '.join(self._heldout) or 'nothing'}")
        return {dataset: self._heldout[dataset]}

    def _held_out(self, dataset: Any) -> dict[str, Rows]:
        """Return the evaluation's rows by name; the name of a single data set is empty."""
        if dataset is None:
            return {}
        if isinstance(dataset, DatasetDict | IterableDatasetDict):
            splits = ", ".join(map(str, dataset))
            raise UsageError(
                f"eval_dataset is a {type(dataset).__name__} with the splits {splits}, the training prompts among them "
                "perhaps",
                f'Write eval_dataset=dataset["{list(dataset)[-1]}"], or a plain dict of those to evaluate on.'
                if dataset
                else None,
            )
        named = dataset if isinstance(dataset, dict) else {"": dataset}
        tokenizer = text_tokenizer(self.processing_class)
        found = {}
        for name, rows in named.items():
            what = f"eval_dataset[{name!r}]" if name else "eval_dataset"
            found[name] = Rows(what, rows, tokenizer, self.data_collator)
            found[name].vocabulary = self._rows.vocabulary
        return found

    def _make(
        self,
        tokenizer: Any,
        model: Any,
        ref_model: Any,
        reward_model: Any,
        value_model: Any,
        peft_config: Any,
        optimizers: tuple[Any, Any],
    ) -> None:
        """Put the loop together from what was given."""
        args = self.args
        self._processes = Processes(Compute(device="cpu" if args.use_cpu else "auto", threads=None))
        self.accelerator = self._processes.accelerator
        fill_sizes(args, self._rows.size, self._processes.count)
        policy = make_policy(args, tokenizer, model, ref_model, peft_config, self._processes.device)
        value_model = apart(value_model, reward_model)
        policy.tokenizer = padding_within(tokenizer, policy.vocabulary)
        for rows in (self._rows, *self._heldout.values()):
            rows.vocabulary = int(policy.base.get_input_embeddings().weight.shape[0])
        self.settings = settings_of(args, own_value_model=value_model is not None, stops=bool(policy.stop_ids))
        prompts = read_prompts(self._rows)
        told = len(policy.notices)
        policy = probe_length(policy, "model", longest_row(self.settings, policy, prompts))
        for text in policy.notices[told:]:
            warnings.warn(text, UserWarning, stacklevel=4)
        self._critic = make_critic(self.settings.critic, policy, value_model, args.seed)
        reward = make_reward(reward_model, policy, args.local_rollout_forward_batch_size)
        self._world = World(policy, prompts, reward, None)
        self.policy_model, self.reward_model, self.value_model = policy.model, reward_model, value_model
        self.model = PolicyAndValueModel(policy.model, self._critic.online if value_model is None else value_model)
        copied = policy.reference if isinstance(policy.reference, PreTrainedModel) else None
        self.ref_model = copied if ref_model is None else ref_model
        self._optimizers = optimizers
        self._loop = self._new_loop()

    def _new_loop(self) -> WatchedLoop:
        policy = self._world.policy
        pair = make_optimizers(self.args, self.settings.update, policy, self._critic, self._optimizers)
        vars(self).update(optimizer=pair[0], lr_scheduler=pair[1])
        loop = WatchedLoop(self.settings, self._world, self._processes, self._critic, pair)
        loop.end_id = text_tokenizer(self.processing_class).eos_token_id
        loop.missing = 0.0 if policy.stop_ids else self.args.missing_eos_penalty or 0.0
        return loop

    def _make_callbacks(self, callbacks: Sequence[TrainerCallback | type[TrainerCallback]]) -> None:
        with naming(
            f"report_to is {self.args.report_to}", "Install what it names, or use report_to='none'.", UsageError
        ):
            reporting = get_reporting_integration_callbacks(self.args.report_to)
        self.callbacks = [*DEFAULT_CALLBACKS, *reporting, *callbacks]
        self.callback_handler = CallbackHandler(
            self.callbacks, self.model, self.processing_class, self.optimizer, self.lr_scheduler
        )
        self.add_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.control = TrainerControl()
        self.state = EpisodeState(
            is_local_process_zero=self.is_local_process_zero(), is_world_process_zero=self.is_world_process_zero()
        )
        self._reward_sees_state()
        self.control = self.callback_handler.on_init_end(self.args, self.state, self.control)

    def _reward_sees_state(self) -> None:
        if isinstance(self._world.reward, FunctionReward):
            self._world.reward.trainer_state = self.state

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, or one of the given kind."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> TrainerCallback | None:
        """Remove a callback, or the first of the given kind, and return it."""
        found: TrainerCallback | None = self.callback_handler.pop_callback(callback)
        return found

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Remove a callback, or the first of the given kind."""
        self.callback_handler.remove_callback(callback)

    def is_world_process_zero(self) -> bool:
        """Say whether this process is the first of all."""
        return self._processes.main

    def is_local_process_zero(self) -> bool:
        """Say whether this process is the first on its machine."""
        return bool(self.accelerator.is_local_main_process)
