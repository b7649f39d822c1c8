"""Builds the parts of the drop-in trainers from what the user gives: loop, models, data, callbacks, state."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from datasets import DatasetDict, IterableDatasetDict
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    enable_full_determinism,
    get_scheduler,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, PrinterCallback
from transformers.trainer_pt_utils import get_parameter_names
from transformers.utils import logging

from safebench.config.schema import Compute, Update
from safebench.errors import UsageError
from safebench.models.assemble import World, longest_row
from safebench.models.critic import Critic
from safebench.models.generation import Rollout
from safebench.models.libraries import naming
from safebench.models.loading import padding_within
from safebench.models.policy import Policy
from safebench.models.probes import probe_length
from safebench.models.prompts import Prompt
from safebench.models.rewards import Reward, called, checked, load_reward, named_roles
from safebench.training.distributed import Processes
from safebench.training.update import Optimizers
from safebench.trl import config, logs
from safebench.trl.config import fill_sizes, is_safe, settings_of
from safebench.trl.data import Rows, read_prompts
from safebench.trl.logs import WatchedLoop
from safebench.trl.models import (
    Classifier,
    PolicyAndValueModel,
    apart,
    make_critic,
    make_policy,
    refuse_shared,
    text_tokenizer,
    trained,
    unwrapped,
)

_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def make_optimizers(args: Any, update: Update, policy: Policy, critic: Critic, given: Optimizers) -> Optimizers:
    """Return optimizer and schedule; each is the given one or, without one, that which ``args`` names.

    The fields of ``args`` are ``optim``, ``optim_args``, ``adam_*``, ``weight_decay`` (none on biases and norms, as in
    transformers) and ``lr_scheduler_type`` with warm-up and ``lr_scheduler_kwargs``. The schedule moves once per batch.
    """
    optimizer = _own(args, update, policy, critic) if given[0] is None else _completed(given[0], policy, critic)
    if given[1] is not None:
        return optimizer, given[1]
    total = update.steps
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    with naming(f"lr_scheduler_type {kind}", f"Mend lr_scheduler_kwargs: {args.lr_scheduler_kwargs}.", UsageError):
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(total),
            num_training_steps=total,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    return optimizer, schedule


def decayed(module: nn.Module) -> list[str]:
    """Return the names of the weights that decay: all but biases and the weights of norms."""
    found: list[str] = get_parameter_names(module, [nn.LayerNorm], _NOT_DECAYED)
    return found


def _own(args: Any, update: Update, policy: Policy, critic: Critic) -> torch.optim.Optimizer:
    with naming(f"optim {args.optim.value}", "Install what it needs, or use adamw_torch.", UsageError):
        make, options = Trainer.get_optimizer_cls_and_kwargs(args, policy.model)
    if not isinstance(make, type) or not issubclass(make, torch.optim.Optimizer) or {"params", "model"} & set(options):
        raise UsageError(
            f"optim is {args.optim.value}, which is bound to layers", "Use adamw_torch, or pass optimizers=(…, None)."
        )
    rates = (update.learning_rate, update.critic_learning_rate or update.learning_rate)
    critics = [module for module in (critic.online, critic.body) if module is not None]
    groups = [*_groups([policy.model], rates[0], args.weight_decay), *_groups(critics, rates[1], args.weight_decay)]
    with naming(f"optim {args.optim.value}", f"Mend optim_args: {args.optim_args}.", UsageError):
        made: torch.optim.Optimizer = make(groups, **{key: value for key, value in options.items() if key != "lr"})
    return made


def _groups(modules: list[nn.Module], rate: float, decay: float) -> list[dict[str, Any]]:
    """Return one group of parameters, or two if some weights decay and others do not; no group is empty."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        names = set(decayed(module)) if decay else set()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (decaying if name in names else others).append(parameter)
    groups = [
        {"params": decaying, "lr": rate, "weight_decay": decay},
        {"params": others, "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _completed(optimizer: torch.optim.Optimizer, policy: Policy, critic: Critic) -> torch.optim.Optimizer:
    """Return the given optimizer, which must train the policy.

    The critic's weights that it lacks are added to its last group of parameters, because a schedule may already count
    the groups.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in policy.trainable().items() if id(p) not in held]
    if missing:
        raise UsageError(
            f"the given optimizer lacks {len(missing)} of the policy's trained weights, such as {missing[0]}",
            "Make it from the model that is trained; with peft_config pass the PeftModel itself instead.",
        )
    optimizer.param_groups[-1]["params"] += [p for p in critic.parameters() if id(p) not in held]
    return optimizer


_NOT_COLUMNS = ("prompt", "completion", "completion_ids", "input_ids", "attention_mask")


class ClassifierReward:
    """A sequence classifier with one output and the policy's tokenizer; its score at a reply's last token is read."""

    def __init__(self, model: Any, policy: Policy, chunk: int) -> None:
        self.name, self.chunk = type(unwrapped(model)).__name__, chunk
        refuse_shared("reward_model", model, trained(policy.model), "Pass a copy of it.")
        self.classifier = Classifier("reward_model", model, policy)

    @torch.no_grad()
    def score_rollout(self, rollout: Rollout) -> Tensor:
        """Return the score at the last token of each reply, its stop token included, [B]."""
        scores = torch.zeros(len(rollout.replies), device=rollout.ids.device)
        for rows in rollout.groups(self.chunk):
            cut = rollout.cut(rows)
            last = cut.attention.shape[1] - 1 - cut.attention.flip(-1).argmax(-1)
            values = self.classifier.values(cut.ids, cut.attention)
            scores[rows] = values[torch.arange(len(rows), device=last.device), last].float()
        return checked(self.name, scores.tolist(), len(rollout.replies))


class FunctionReward:
    """A Python function of texts as the reward.

    It has one of two forms, told apart by the names of the parameters. The first is
    ``f(prompts=…, completions=…, **columns) -> list of floats``, as TRL's GRPOTrainer calls it. It gets those of
    ``prompts``, ``completions``, ``completion_ids``, ``trainer_state`` and the data set's columns that it names, or all
    of them with ``**kwargs``; for conversations, prompts and completions are lists of messages. The second is
    ``f(prompts, replies)``, as this package calls it, with two lists of texts in this order.
    """

    def __init__(self, function: Callable[..., Sequence[float]]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.trainer_state: Any = None
        self.names = _named(function, self.name)
        self.roles = None if self.names is not None else named_roles(function, self.name)

    def score_rollout(self, rollout: Rollout) -> Tensor:
        """Call the function and return its values after a check, [B]."""
        return called(
            self.name,
            lambda: self._call(rollout),
            len(rollout.replies),
            "Mend it, then train(resume_from_checkpoint=True) goes on from the last checkpoint.",
        )

    def _call(self, rollout: Rollout) -> Sequence[float]:
        prompts, replies = [str(prompt) for prompt in rollout.prompts], list(rollout.replies)
        if self.roles is not None:
            texts = {"prompts": prompts, "replies": replies}
            return self.function(**{name: texts[role] for name, role in self.roles.items()})
        if self.names is None:
            return self.function(prompts, replies)
        given = _arguments(rollout) | {"trainer_state": self.trainer_state}
        wanted = given if "**" in self.names else {name: given[name] for name in self.names if name in given}
        return self.function(**wanted)


def make_reward(model: Any, policy: Policy, chunk: int) -> Reward:
    """Return the reward that ``model`` stands for: a classifier, a function, a safebench reward or the name of one."""
    if isinstance(model, nn.Module):
        return cast(Reward, ClassifierReward(model, policy, chunk))
    if isinstance(model, str):
        return load_reward(model, policy.device, apart=policy.tokenizer.chat_template is not None)
    if hasattr(model, "score") or hasattr(model, "score_rollout"):
        return cast(Reward, model)
    if callable(model):
        return cast(Reward, FunctionReward(model))
    raise UsageError(
        f"reward_model is a {type(model).__name__}",
        "Pass one sequence classifier, loaded, one function (prompts, completions) -> floats, or a name of "
        "`safebench list rewards`.",
    )


def _arguments(rollout: Rollout) -> dict[str, Any]:
    prompts, replies = rollout.prompts, rollout.replies
    rows = [prompt.row if isinstance(prompt, Prompt) else {} for prompt in prompts]
    talks = [prompt.messages if isinstance(prompt, Prompt) else None for prompt in prompts]
    ids = [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask, strict=True)]
    columns = {name: [row.get(name) for row in rows] for name in rows[0] if name not in _NOT_COLUMNS}
    if all(talk is not None for talk in talks):
        completions: list[Any] = [[{"role": "assistant", "content": reply}] for reply in replies]
        return {**columns, "prompts": talks, "completions": completions, "completion_ids": ids}
    return {**columns, "prompts": [str(p) for p in prompts], "completions": list(replies), "completion_ids": ids}


def _named(function: Callable[..., Any], name: str) -> tuple[str, ...] | None:
    """Return the names to pass by keyword, with ``**`` if all are accepted; None for (prompts, replies) by position."""
    parameters = list(inspect.signature(function).parameters.values())
    names = tuple(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return (*names, "**")
    if "completions" in names:
        return names
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    if (len(places) >= 2 and len(needed) <= 2) or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    raise UsageError(
        f"the reward function {name} takes ({', '.join(names)})",
        "Write f(prompts, replies), or f(completions, **kwargs) as for TRL's GRPOTrainer.",
    )


@dataclass
class EpisodeState(TrainerState):  # type: ignore[misc]
    """transformers' trainer state, with the number of replies sampled."""

    episode: int = 0


class Parts:
    """A trainer's parts, built by TRL's constructor; ``trainer.PPOTrainer`` describes the arguments."""

    _name: ClassVar[str] = "PPO"
    _tags: ClassVar[tuple[str, ...]] = ("trl", "ppo")
    _made = False
    """Whether all parts have been built."""
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
        """Return the rows to evaluate on, by name; ``dataset``: a data set, a dictionary, a given name, or None."""
        if dataset is None:
            return self._heldout
        if not isinstance(dataset, str):
            return self._held_out(dataset)
        if dataset not in self._heldout:
            raise UsageError(f"eval_dataset has no {dataset!r}; it has {', '.join(self._heldout) or 'nothing'}")
        return {dataset: self._heldout[dataset]}

    def _held_out(self, dataset: Any) -> dict[str, Rows]:
        """Return the evaluation's rows by name; a single data set has an empty name."""
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
        """Build the loop from what was given."""
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
        """Return whether this process is the first of all."""
        return self._processes.main

    def is_local_process_zero(self) -> bool:
        """Return whether this process is the first on its machine."""
        return bool(self.accelerator.is_local_main_process)
