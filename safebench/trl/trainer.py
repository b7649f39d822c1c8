"""TRL 1.12.0's PPOTrainer as its users know it, on this package's loop; and SAFE in its place.

How it departs from TRL's trainer:
1. every field of the configuration acts, is refused, or is named in a warning (``fields.py``);
2. checkpoints hold the whole state, critic included, and a resumed run goes on as if it had not stopped;
3. without a value model the critic sits on the policy's own hidden states, at half the forward passes;
4. the reference of a policy that came with a trained adapter is that adapter as it came;
5. ``model`` is the policy itself, not a wrapper around policy and value model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, enable_full_determinism
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, ExportableState, PrinterCallback
from transformers.trainer_utils import HubStrategy, SaveStrategy, TrainOutput
from transformers.utils import logging

from safebench.errors import Instability, UsageError
from safebench.trainers.processes import Processes
from safebench.trl import fields, hub, keys, replies, saving
from safebench.trl.config import PPOConfig, SAFEConfig
from safebench.trl.data import Rows, read_prompts
from safebench.trl.models import (
    give_head_back,
    make_critic,
    make_policy,
    padding_within,
    text_tokenizer,
)
from safebench.trl.optimizers import make_optimizers
from safebench.trl.rewards import FunctionReward, make_reward
from safebench.trl.translate import fill_sizes, is_safe, settings_of
from safebench.trl.watch import WatchedLoop
from safebench.world.assemble import World

SIGMA_ROWS = 128
"""Prompts on which the initial policy's spread of rewards is measured, for SAFE's controller."""


@dataclass
class EpisodeState(TrainerState):  # type: ignore[misc]
    """transformers' state, and the number of replies sampled."""

    episode: int = 0


class PPOTrainer:
    """PPO by TRL's interface.

    ``model``: the policy, a transformers model or PeftModel. ``ref_model``: the reference; None for a copy of the
    policy or of its adapter as given, or with ``peft_config`` the policy without adapter. ``reward_model``: a sequence
    classifier that reads the policy's token ids, a function of texts (``rewards.FunctionReward``), or a name of
    `safebench rewards`. ``value_model``: a sequence classifier whose body and score start the critic; None for a
    critic on the policy's own states. ``train_dataset``, ``eval_dataset`` (or a dictionary of them): rows with
    ``input_ids``, a text or a conversation (``data.Rows``). ``optimizers``: an optimizer over the policy and a
    schedule that moves once per batch; None for what ``args`` say. Raises ``UsageError`` and ``MissingResource`` for
    what cannot work, before anything is trained.
    """

    _name: ClassVar[str] = "PPO"
    _tags: ClassVar[tuple[str, ...]] = ("trl", "ppo")

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
        fields.check(args)
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
        self._make(tokenizer, model, ref_model, reward_model, value_model, peft_config, optimizers)
        self._make_callbacks(callbacks or ())
        self.hub_model_id: str | None = None
        self._steps: list[keys.Row] = []
        if args.should_save:
            os.makedirs(args.output_dir, exist_ok=True)

    def _check_kind(self, args: Any) -> None:
        if is_safe(args):
            raise UsageError("PPOTrainer got a SAFEConfig", "Use SAFETrainer, or a PPOConfig.")

    def _held_out(self, dataset: Any) -> dict[str, Rows]:
        """Return the evaluation's rows by name; the name of a single data set is empty."""
        if dataset is None:
            return {}
        named = dataset if isinstance(dataset, dict) else {"": dataset}
        tokenizer = text_tokenizer(self.processing_class)
        return {name: Rows("eval_dataset", rows, tokenizer, self.data_collator) for name, rows in named.items()}

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
        from safebench.settings import Compute

        args = self.args
        self._processes = Processes(Compute(device="cpu" if args.use_cpu else "auto", threads=None))
        self.accelerator = self._processes.accelerator
        fill_sizes(args, self._rows.size, self._processes.count)
        policy = make_policy(args, tokenizer, model, ref_model, peft_config, self._processes.device)
        policy.tokenizer = padding_within(tokenizer, policy.vocabulary)
        self.settings = settings_of(args, own_value_model=value_model is not None, stops=bool(policy.stop_ids))
        self._critic = make_critic(self.settings.critic, policy, value_model, args.seed)
        reward = make_reward(reward_model, policy, args.local_rollout_forward_batch_size)
        self._world = World(policy, read_prompts(self._rows), reward, None)
        self.model = self.policy_model = policy.model
        self.ref_model, self.reward_model, self.value_model = ref_model, reward_model, value_model
        self._optimizers = optimizers
        self._loop = self._new_loop()

    def _new_loop(self) -> WatchedLoop:
        policy = self._world.policy
        pair = make_optimizers(self.args, self.settings.update, policy, self._critic, self._optimizers)
        self.optimizer, self.lr_scheduler = pair
        loop = WatchedLoop(self.settings, self._world, self._processes, self._critic, pair)
        loop.end_id = text_tokenizer(self.processing_class).eos_token_id
        loop.missing = 0.0 if policy.stop_ids else self.args.missing_eos_penalty or 0.0
        return loop

    def _make_callbacks(self, callbacks: Sequence[TrainerCallback | type[TrainerCallback]]) -> None:
        found = [*DEFAULT_CALLBACKS, *get_reporting_integration_callbacks(self.args.report_to), *callbacks]
        self.callback_handler = CallbackHandler(
            found, self.model, self.processing_class, self.optimizer, self.lr_scheduler
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

    # Training

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainOutput:
        """Train to the end, or until a callback says that it is enough.

        ``resume_from_checkpoint``: a folder, or True for the newest whole one under ``output_dir``; without it
        ``args.resume_from_checkpoint`` holds, and without that a new run begins. Raises ``Instability`` where a number
        stops being finite, the weights left as they were before it, and ``BadResource`` for a reward that is no
        number.
        """
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        self._begin(wanted)
        started, begun = time.perf_counter(), self.state.episode
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        if self.args.eval_on_start and self.state.global_step == 0:
            self._evaluate_all()
        self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self._step(started, begun)
        self._end()
        return self._outcome(started, begun)

    def _begin(self, wanted: str | Path | bool | None) -> None:
        if self._loop.step_number:
            self._loop = self._new_loop()
            self.callback_handler.optimizer, self.callback_handler.lr_scheduler = self.optimizer, self.lr_scheduler
        self._steps = []
        if wanted:
            self._resume(saving.find(self.args.output_dir, wanted))
        else:
            self.state = EpisodeState(
                is_local_process_zero=self.is_local_process_zero(), is_world_process_zero=self.is_world_process_zero()
            )
            self._measure_spread()
        self.state.max_steps = self.args.num_total_batches
        self.state.num_train_epochs = self.args.total_episodes / self._rows.size
        self.state.train_batch_size = self.args.per_device_train_batch_size
        self.state.compute_steps(self.args, self.state.max_steps)
        self._reward_sees_state()

    def _measure_spread(self) -> None:
        """PPO has no use for sigma_0."""

    def _step(self, started: float, begun: int) -> None:
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        row, _ = self._loop.step()
        before = int((self.state.epoch or 0.0) + 1e-9)
        self.state.global_step += 1
        self.state.episode += self.args.batch_size
        self.state.epoch = self.state.episode / self._rows.size
        every = self.args.torch_empty_cache_steps
        if every and self.state.global_step % every == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()
        loop = self._loop
        theirs = keys.trl_keys(
            row,
            loop.batch,
            self.settings,
            ratio_variance=loop.ratio_variance(),
            seconds=time.perf_counter() - started,
            begun=begun,
        )
        self._steps.append({**row, **theirs})
        if loop.broken is not None:
            self._log_steps()
            raise Instability(
                f"step {self.state.global_step}: {loop.broken}; the weights are those before it",
                "Lower learning_rate, or train(resume_from_checkpoint=True) with other settings.",
            )
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self._act()
        if int(self.state.epoch + 1e-9) > before:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._act()
            self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        self._show_replies()

    def _act(self) -> None:
        """Log, evaluate and save where a callback asked for it."""
        if self.control.should_log:
            self._log_steps()
        if self.control.should_evaluate:
            self._evaluate_all()
        if self.control.should_save:
            self._save_checkpoint()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _end(self) -> None:
        give_head_back(self._critic, self.value_model)
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self._load_best(Path(best))
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        if self.control.should_save:
            self._save_checkpoint()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _outcome(self, started: float, begun: int) -> TrainOutput:
        seconds = time.perf_counter() - started
        losses = [entry["loss/total"] for entry in self.state.log_history if "loss/total" in entry]
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": (self.state.episode - begun) / seconds,
            "train_loss": losses[-1] if losses else float("nan"),
        }
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    # Log and evaluation

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add an entry to ``state.log_history`` and hand it to the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _log_steps(self) -> None:
        if self._steps:
            logs, self._steps = keys.entry(self._steps), []
            self.log(dict(logs))
        self.control.should_log = False

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Reply to the held-out prompts at temperature 1 with fixed noise; log and return what was measured.

        Keys are ``eval_reward``, ``eval_kl`` (exact, nats per token), ``eval_entropy``, ``eval_length``,
        ``eval_distinct``, ``eval_distinct_2``; of a dictionary of data sets ``eval_<name>_reward`` and so on.
        """
        named = self._heldout if eval_dataset is None else self._held_out(eval_dataset)
        if not named:
            raise UsageError("there is nothing to evaluate on", "Give eval_dataset to the trainer, or to evaluate().")
        found: dict[str, float] = {}
        for name, rows in named.items():
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            measured = replies.measure(
                self.settings, self._world, self._processes, rows, self.args.per_device_eval_batch_size
            )
            found |= {f"{prefix}_{key}": value for key, value in measured.items() if key not in (ignore_keys or ())}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _evaluate_all(self) -> None:
        metrics = self.evaluate()
        if self._is_best(metrics) and self.args.save_strategy == SaveStrategy.BEST:
            self.control.should_save = True

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        wanted = self.args.metric_for_best_model
        if wanted is None:
            return False
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if name not in metrics:
            raise UsageError(f"metric_for_best_model is {wanted!r}; there are {', '.join(metrics)}")
        value, best = metrics[name], self.state.best_metric
        if best is not None and not (value > best if self.args.greater_is_better else value < best):
            return False
        self.state.best_metric, self.state.best_global_step = value, self.state.global_step
        return True

    def generate_completions(self, sampling: bool = False) -> pandas.DataFrame | None:
        """Print replies to held-out prompts, nearly greedy, with their scores, and return them; None without prompts.

        ``sampling``: only as many as fit one batch, as is done during training.
        """
        if not self._heldout:
            return None
        size = self.args.per_device_eval_batch_size
        frame = pandas.concat(
            [
                replies.complete(self.settings, self._world, self._processes, rows, size, size if sampling else None)
                for rows in self._heldout.values()
            ],
            ignore_index=True,
        )
        if self.is_world_process_zero():
            replies.show(frame)
            self._send_table(frame)
        return frame

    def _send_table(self, frame: pandas.DataFrame) -> None:
        """Hand the replies to Weights & Biases, where its callback is at work."""
        for callback in self.callback_handler.callbacks:
            wandb = getattr(callback, "_wandb", None)
            if wandb is not None and wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=frame)})

    def _show_replies(self) -> None:
        times = self.args.num_sample_generations
        if times > 0 and self._heldout:
            every = max(1, self.state.max_steps // times)
            if (self.state.global_step - 1) % every == 0:
                self.generate_completions(sampling=True)

    # Saving and resuming

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Write the policy (its adapter, where it has one) and the tokenizer into a folder, ``output_dir`` by default.

        Plain transformers and peft load it. With ``push_to_hub`` it is uploaded too, unless called from within.
        """
        give_head_back(self._critic, self.value_model)
        folder = output_dir or self.args.output_dir
        if self._processes.main:
            saving.save_model(folder, self.model, self.processing_class, self.args)
        self._processes.wait()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def save_state(self) -> None:
        """Write ``trainer_state.json`` into ``output_dir``."""
        if self._processes.main:
            self.state.save_to_json(str(Path(self.args.output_dir) / saving.STATE))

    def _save_checkpoint(self) -> None:
        folder = saving.folder_of(self.args.output_dir, self.state.global_step)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        self.save_model(folder, _internal_call=True)
        if self._processes.main:
            self._keep_callbacks()
            self.create_model_card()
            if self.args.save_only_model:
                self.state.save_to_json(str(folder / saving.STATE))
            else:
                state = {"loop": self._loop.state(), "steps": [dict(row) for row in self._steps]}
                saving.save_state(folder, self.state.global_step, self.state, state)
            saving.rotate(self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        self._processes.wait()
        if self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}", blocking=False)

    def _keep_callbacks(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()

    def _resume(self, folder: Path) -> None:
        state = saving.load_state(folder)
        self.state = EpisodeState.load_from_json(str(folder / saving.STATE))
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self._loop.restore(state["loop"])
        self._steps = list(state["steps"])
        if self.args.restore_callback_states_from_checkpoint:
            self._restore_callbacks()

    def _restore_callbacks(self) -> None:
        for callback in self.callback_handler.callbacks:
            kept = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and isinstance(kept, dict):
                for name, value in {**kept.get("args", {}), **kept.get("attributes", {})}.items():
                    setattr(callback, name, value)

    def _load_best(self, folder: Path) -> None:
        weights = saving.load_state(folder)["loop"]["adapter"]
        with torch.no_grad():
            for name, parameter in self._world.policy.trainable().items():
                parameter.copy_(weights[name])

    # The hub

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a model card, README.md, into ``output_dir``."""
        if not self._processes.main:
            return
        extra = [tags] if isinstance(tags, str) else list(tags or ())
        args = self.args
        settings = [
            f"{name}: {getattr(args, name)}"
            for name in ("learning_rate", "batch_size", "num_ppo_epochs", "kl_coef", "response_length", "seed")
        ]
        base = str(self._world.policy.base.config._name_or_path or "") or None
        name = model_name or hub.repository(args).split("/")[-1]
        made = hub.card(name, base, dataset_name, [*self._tags, *extra], type(self).__name__, settings)
        made.save(Path(args.output_dir) / "README.md")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload model, tokenizer and card; ``kwargs`` go to ``create_model_card``. Nothing else ever uploads.

        With ``hub_strategy`` ``checkpoint`` or ``all_checkpoints`` the checkpoints go too.
        """
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self._processes.main:
            return None
        self.create_model_card(**kwargs)
        with_checkpoints = args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        self.hub_model_id = hub.repository(args)
        return hub.upload(
            args.output_dir,
            self.hub_model_id,
            message=commit_message or "End of training",
            token=token or args.hub_token,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            wait=blocking,
            leave_out=[] if with_checkpoints else ["checkpoint-*"],
        )


class SAFETrainer(PPOTrainer):
    """SAFE (Maity 2026, arXiv 2602.04651) by the same interface; ``args`` is a ``SAFEConfig``.

    The spread of the initial policy's rewards, which is the unit of the controller's reward, is measured on up to
    128 held-out prompts, or training prompts without such, when training begins.
    """

    _name: ClassVar[str] = "SAFE"
    _tags: ClassVar[tuple[str, ...]] = ("trl", "ppo", "safe")

    def _check_kind(self, args: Any) -> None:
        if not is_safe(args):
            raise UsageError(f"SAFETrainer got a {type(args).__name__}", "Use a SAFEConfig, or PPOTrainer.")

    def _measure_spread(self) -> None:
        rows = next(iter(self._heldout.values()), self._rows)
        self._loop.sigma0 = replies.spread(
            self.settings, self._world, self._processes, rows.first(SIGMA_ROWS), self.args.per_device_eval_batch_size
        )


__all__ = ["PPOConfig", "PPOTrainer", "SAFEConfig", "SAFETrainer"]
