"""Runs another library's trainer as a learner of this package, and measures each of its batches and updates."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, set_seed

from safebench import config
from safebench.baselines.library import silence
from safebench.config.schema import Settings
from safebench.errors import UsageError
from safebench.metrics import MEASURED
from safebench.models.assemble import World
from safebench.models.generation import Encoded, Rollout, reply_texts
from safebench.models.policy import Policy
from safebench.models.prompts import conversation_of
from safebench.models.rewards import score
from safebench.recording.jsonl import Sample
from safebench.training.distributed import Processes
from safebench.training.evaluate import Evaluation, evaluate
from safebench.training.loop import Clock, Report, Row, describe, peak_memory, perturb_rewards
from safebench.training.measure import measure


def refuse_unsupported(settings: Settings, only: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` unless each key of ``only`` has the value given there; a section's name stands for its keys.

    The error lists all faults together, and its hint has the flags that correct them.
    """
    dump = settings.model_dump()
    for key, value in only.items():
        *path, last = key.split(".")
        section = dump
        for part in path:
            section = section[part]
        section[last] = value
    wrong = config.changes(Settings.model_validate(dump), settings)
    if not wrong:
        return
    faults = "; ".join(f"{key} is {json.dumps(has)}, not {json.dumps(can)}" for key, has, can in wrong)
    flags = " ".join(f"--set {key}={json.dumps(can)}" for key, _, can in wrong)
    raise UsageError(f"TRL's trainer behind {settings.algorithm} cannot do what is asked: {faults}", f"Use {flags}.")


def refuse_places(settings: Settings, processes: Processes) -> None:
    """Refuse several processes, and devices other than the first; TRL's trainers would use them regardless."""
    if processes.count > 1:
        raise UsageError(
            f"{settings.algorithm} runs in one process, and there are {processes.count}", "Start it without a launcher."
        )
    if processes.device.index not in (None, 0):
        raise UsageError(
            f"{settings.algorithm} runs on the first device, and compute.device is {settings.compute.device}",
            "Use --set compute.device=cuda, and choose the device with CUDA_VISIBLE_DEVICES.",
        )


SHARED_LIMITS: dict[str, Any] = {
    "compute.replicate": 0,
    "model.mixed_precision": False,
    "reward.normalise": False,
    "update.optimizer": "adamw",
    "update.preview": None,
    "loss.entropy_coefficient": 0.0,
    "loss.kl_coefficient": 0.0,
    "penalty": None,
}
"""Settings that none of the trainers supports, each key with its only permitted value."""


def shared_arguments(settings: Settings, folder: str, device: torch.device) -> dict[str, Any]:
    """Return the shared arguments by the names of ``TrainingArguments``; nothing is written to ``folder``."""
    update = settings.update
    return {
        "output_dir": folder,
        "seed": settings.seed,
        "learning_rate": update.learning_rate,
        "lr_scheduler_type": update.schedule,
        "weight_decay": update.weight_decay,
        "optim": "adamw_torch",
        "temperature": settings.rollout.temperature,
        "gradient_checkpointing": settings.model.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": False,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "push_to_hub": False,
        "disable_tqdm": True,
        "logging_steps": 1,
    }


Log = dict[str, Any]
"""One log entry of a trainer, by the trainer's own keys."""


class Method(Protocol):
    """The part that differs between wrapped trainers: how to make the trainer, and how to convert its log."""

    logs_per_step: int
    """Number of log entries between two batches."""

    def trainer(self, watch: Watch, folder: str) -> Any:
        """Return the other library's trainer, which passes each batch to ``watch``; ``folder`` stays empty."""
        ...

    def columns(self, logs: list[Log], row: Row) -> Row:
        """Return the columns that a step's logs fill, given its batch's; only those with our definition."""
        ...


class Watch(Protocol):
    """Receives the batches of a trainer, in one piece or in several."""

    def score(self, prompts: Encoded, replies: list[list[int]]) -> Tensor:
        """Return the training reward of each reply, [b] on the CPU, given the ids that were sampled for it.

        Must be called after sampling and before any update, once for each row of the batch, in order.
        """
        ...


@dataclass(frozen=True)
class Piece:
    """Some rows of a batch: prompts, sampled ids, and rewards before stress, [b]."""

    prompts: Encoded
    replies: list[list[int]]
    rewards: Tensor


def whole(pieces: list[Piece]) -> tuple[Encoded, list[list[int]]]:
    """Join the pieces of a batch; their prompts are padded to one width."""
    parts = [piece.prompts for piece in pieces]
    prompts = Encoded(
        [text for part in parts for text in part.texts],
        torch.cat([part.ids for part in parts]),
        torch.cat([part.attention for part in parts]),
        sum(part.truncated for part in parts),
    )
    return prompts, [reply for piece in pieces for reply in piece.replies]


def rollout_of(policy: Policy, prompts: Encoded, replies: list[list[int]]) -> Rollout:
    """Return prompts and the ids sampled for them, [B] lists of any length, as a rollout.

    A reply ends with the tokenizer's end token, at which TRL stops, or is cut off.
    """
    end, device = policy.tokenizer.eos_token_id, prompts.ids.device
    pad = int(policy.tokenizer.pad_token_id)
    width = max(1, *map(len, replies))
    ids = torch.tensor([reply + [pad] * (width - len(reply)) for reply in replies], device=device)
    lengths = torch.tensor([len(reply) for reply in replies], device=device)
    mask = torch.arange(width, device=device)[None] < lengths[:, None]
    ended = torch.tensor([reply[-1:] == [end] for reply in replies], device=device)
    spoken = [reply[:-1] if reply[-1:] == [end] else reply for reply in replies]
    before = [ids[real.bool()].tolist() for ids, real in zip(prompts.ids, prompts.attention, strict=True)]
    return Rollout(
        prompts=prompts.texts,
        replies=reply_texts(policy.tokenizer, spoken, before),
        ids=torch.cat([prompts.ids, ids], dim=1),
        attention=torch.cat([prompts.attention, mask.to(prompts.attention.dtype)], dim=1),
        mask=mask,
        ended=ended,
        truncated=prompts.truncated,
    )


def cut_at_the_end(ids: list[int], end: int, pad: int) -> list[int]:
    """Return the part of the sampled ids that TRL's PPO takes as the reply.

    It extends to the first end token, or to an earlier padding token, which the policy may sample too.
    """
    stop = ids.index(end) + 1 if end in ids else len(ids)
    return ids[: ids.index(pad)] if pad != end and pad in ids[:stop] else ids[:stop]


class _Enough(Exception):
    """Raised to leave the other library's training, which cannot be stopped in any other way."""


class Wrapped:
    """A trainer of another library, which is started, seeded, measured and stopped like any learner.

    It draws from torch's global generator, so no two algorithms are paired by their seed. Its optimizer cannot be
    saved, so an interrupted run starts again. Evaluation is the loop's own.
    """

    resumable = False
    paired = False

    def __init__(self, settings: Settings, world: World, processes: Processes, method: Method) -> None:
        refuse_places(settings, processes)
        self.settings, self.world, self.processes, self.method = settings, world, processes, method
        self.clock = Clock(world.policy.device)
        self.sigma0 = 1.0
        self.step_number, self.episodes, self.tokens = 0, 0, 0
        self.broken: str | None = None
        self._logs: list[Log] = []
        self._row: Row | None = None
        self._samples: list[Sample] = []
        self._pieces: list[Piece] = []
        self._sampled = 0
        self._stopwatch = contextlib.ExitStack()

    def evaluate(self) -> Evaluation:
        """Evaluate the current policy on the held-out prompts."""
        with self.clock.stage("evaluate"), eval_mode(self.world.policy):
            return evaluate(self.settings, self.world, self.processes)

    def learn(self, report: Report) -> None:
        """Let the trainer train until its end, or until ``report`` returns False."""
        self._report = report
        set_seed(self.settings.seed)
        with tempfile.TemporaryDirectory() as folder, silence() as self._unprinted, _as_it_was(self.world.policy):
            trainer = self.method.trainer(self, folder)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Callback(self))
            try:
                trainer.train()
            except _Enough:
                return
            except RuntimeError as fault:
                # Non-finite weights give probabilities from which torch cannot sample.
                if "probability tensor" not in str(fault):
                    raise
                self.broken = str(fault)
            finally:
                self._stopwatch.close()
                self.clock.take()

    def state(self) -> dict[str, Any]:
        """Return an empty state: the other library's trainers cannot be continued."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Raise ``UsageError``: there is no state to continue from."""
        raise UsageError(
            f"{self.settings.algorithm} cannot continue a run", "Remove the run's folder and call the command again."
        )

    def score(self, prompts: Encoded, replies: list[list[int]]) -> Tensor:
        """Score some rows of a batch and return their rewards under stress; with the last rows, measure the batch."""
        if not self._pieces:
            self.step_number += 1
        first = sum(len(piece.replies) for piece in self._pieces)
        with self.clock.stage("reward"):
            rewards = score(self.world.reward, rollout_of(self.world.policy, prompts, replies))
        self._pieces.append(Piece(prompts, replies, rewards))
        rows = range(first, first + len(replies))
        if rows.stop == self.settings.rollout.batch:
            self._measure()
        return perturb_rewards(self.settings, rewards, step=self.step_number, rows=rows, sigma0=self.sigma0)

    def _measure(self) -> None:
        """Compute this package's columns for the whole batch, under the policy that sampled it."""
        policy, settings = self.world.policy, self.settings
        with self.clock.stage("measure"), eval_mode(policy):
            rollout = rollout_of(policy, *whole(self._pieces))
            rewards = torch.cat([piece.rewards for piece in self._pieces])
            measured = measure(policy, rollout, settings.rollout.temperature, settings.update.microbatch)
            described = describe(rollout, measured, rewards, self.processes)
        self._pieces = []
        self.episodes += len(rollout.replies)
        self.tokens += int(rollout.mask.sum())
        self._row = {"step": self.step_number, "episodes": self.episodes, "tokens": self.tokens, **described.columns}
        shown = list(zip(rollout.prompts, rollout.replies, rewards.tolist(), strict=True))[: settings.recording.samples]
        self._samples = [
            Sample(row, prompt, reply, reward, messages=conversation_of(prompt))
            for row, (prompt, reply, reward) in enumerate(shown)
        ]
        self._sampled = int(rollout.mask.sum())

    def begun(self) -> None:
        """Start the clock, and show printed output again."""
        self._unprinted.close()
        self._stopwatch.enter_context(self.clock.stage("step"))

    def logged(self, log: Log) -> None:
        """Take a log entry of the trainer; the last entry of a step completes its row."""
        if self._row is None:
            return  # the summary at the end of the training
        self._logs.append(log)
        if len(self._logs) < self.method.logs_per_step:
            return
        row, logs, self._row, self._logs = self._row, self._logs, None, []
        row |= self.method.columns(logs, row) | self._costs()
        self.broken = self._not_finite(row)
        if not self._report({key: row.get(key) for key in MEASURED}, self._samples):
            raise _Enough
        self._stopwatch.enter_context(self.clock.stage("step"))

    def _costs(self) -> Row:
        """Return the times; the time of our measuring is subtracted from the other library's step."""
        self._stopwatch.close()
        seconds = self.clock.take()
        seconds["time/step"] -= seconds["time/measure"]
        return {
            **seconds,
            "speed/tokens_per_second": self._sampled / seconds["time/step"],
            "memory/peak": peak_memory(self.world.policy.device),
        }

    def _not_finite(self, row: Row) -> str | None:
        """Return what has stopped being finite, a column or a weight of the policy; None if all are finite."""
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{key} is {value}"
        for name, parameter in self.world.policy.trainable().items():
            if not bool(torch.isfinite(parameter).all()):
                return f"{name} is not finite"
        return None


class _Callback(TrainerCallback):  # type: ignore[misc]
    """Passes the trainer's events to ``wrapped``."""

    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped = wrapped

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Report that training begins."""
        self.wrapped.begun()

    def on_log(self, *_: Any, logs: Log, **__: Any) -> None:
        """Pass on a log entry."""
        self.wrapped.logged(dict(logs))


@contextlib.contextmanager
def eval_mode(policy: Policy) -> Iterator[None]:
    """Put the policy in evaluation mode within this context, and restore every module's mode after it."""
    training = [module for module in policy.model.modules() if module.training]
    policy.model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _as_it_was(policy: Policy) -> Iterator[None]:
    """Undo, after the training, what TRL sets on the model beside its weights: mode, end token, adapters."""
    model: Any = policy.model
    ends = getattr(model.generation_config, "eos_token_id", None)
    adapters = set(getattr(model, "peft_config", ()))
    try:
        yield
    finally:
        model.eval()
        if model.generation_config is not None:
            model.generation_config.eos_token_id = ends
        for name in set(getattr(model, "peft_config", ())) - adapters:
            model.delete_adapter(name)
