"""TRL 1.12.0's PPOTrainer as its users know it, on this package's loop; and SAFE in its place.

How it departs from TRL's trainer:
1. every field of the configuration acts, is refused, or is named in a warning (``fields.py``);
2. checkpoints hold the whole state, critic included, and a resumed run goes on as if it had not stopped;
3. without a value model the critic sits on the policy's own hidden states, at half the forward passes;
4. the reference of a policy that came with a trained adapter is that adapter as it came;
5. ``model`` has ``policy`` and ``value_model`` as TRL's has, and is the policy for everything else.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers.trainer_utils import TrainOutput

from safebench.errors import Instability, UsageError
from safebench.trl import keys, replies, saving
from safebench.trl.parts import EpisodeState
from safebench.trl.storing import Storing
from safebench.trl.translate import is_safe

SIGMA_ROWS = 128
"""Prompts on which the initial policy's spread of rewards is measured, for SAFE's controller."""


class PPOTrainer(Storing):
    """PPO by TRL's interface.

    ``model``: the policy, a transformers model or PeftModel. ``ref_model``: the reference; None for a copy of the
    policy or of its adapter as given, or with ``peft_config`` the policy without adapter. ``reward_model``: a
    sequence classifier that reads the policy's token ids, a function of texts (``rewards.FunctionReward``), or a
    name of `safebench rewards`. ``value_model``: a sequence classifier whose body and score are the critic, trained
    where they require gradients; None for a critic on the policy's own states. ``train_dataset``, ``eval_dataset``
    (or a dictionary of them): rows with ``input_ids``, a text or a conversation (``data.Rows``). ``optimizers``: an
    optimizer over the policy and a schedule that moves once per batch; None for what ``args`` say. Raises
    ``UsageError`` and ``MissingResource`` for what cannot work, before anything is trained.
    """

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
