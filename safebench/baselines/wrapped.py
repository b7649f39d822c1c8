"""Another library's trainer as a learner of ours: it trains, and we watch each batch and each update of it."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, set_seed

from safebench.baselines.library import silence
from safebench.baselines.limits import refuse_places
from safebench.baselines.sampled import rollout_of
from safebench.baselines.watch import Log, Method, Piece, whole
from safebench.errors import UsageError
from safebench.metrics import MEASURED
from safebench.models.assemble import World
from safebench.models.generation import Encoded
from safebench.models.policy import Policy
from safebench.models.prompts import conversation_of
from safebench.models.rewards import score
from safebench.recording.jsonl import Sample
from safebench.settings import Settings
from safebench.trainers.clock import Clock, peak_memory
from safebench.trainers.describe import Row, describe
from safebench.trainers.evaluate import Evaluation, evaluate
from safebench.trainers.experience import measure
from safebench.trainers.learner import Report
from safebench.trainers.processes import Processes
from safebench.trainers.stress import stressed


class _Enough(Exception):
    """Leaves the other library's training, which listens to nothing else."""


class Wrapped:
    """A trainer of another library, launched, seeded, measured and stopped as any learner.

    It draws from torch's global generator, so no two arms are paired by their seed, and its optimizer cannot be
    saved, so that a run that was broken off begins anew. Evaluation is the loop's own.
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
        """Evaluate the present policy on the held-out prompts."""
        with self.clock.stage("evaluate"), at_rest(self.world.policy):
            return evaluate(self.settings, self.world, self.processes)

    def learn(self, report: Report) -> None:
        """Let the trainer train until its end, or until ``report`` says that it is enough."""
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
                # torch cannot sample from what weights that are not finite give.
                if "probability tensor" not in str(fault):
                    raise
                self.broken = str(fault)
            finally:
                self._stopwatch.close()
                self.clock.take()

    def state(self) -> dict[str, Any]:
        """Return nothing: the other library's trainers cannot be continued."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Refuse: there is nothing to continue from."""
        raise UsageError(
            f"{self.settings.arm} cannot continue a run", "Remove the run's folder and call the command again."
        )

    def score(self, prompts: Encoded, replies: list[list[int]]) -> Tensor:
        """Score some rows of a batch and return their rewards under stress; with the last rows measure it all."""
        if not self._pieces:
            self.step_number += 1
        first = sum(len(piece.replies) for piece in self._pieces)
        with self.clock.stage("reward"):
            rewards = score(self.world.reward, rollout_of(self.world.policy, prompts, replies))
        self._pieces.append(Piece(prompts, replies, rewards))
        rows = range(first, first + len(replies))
        if rows.stop == self.settings.rollout.batch:
            self._measure()
        return stressed(self.settings, rewards, step=self.step_number, rows=rows, sigma0=self.sigma0)

    def _measure(self) -> None:
        """Describe the whole batch in our units, under the policy that sampled it."""
        policy, settings = self.world.policy, self.settings
        with self.clock.stage("measure"), at_rest(policy):
            rollout = rollout_of(policy, *whole(self._pieces))
            rewards = torch.cat([piece.rewards for piece in self._pieces])
            measured = measure(policy, rollout, settings.rollout.temperature, settings.update.microbatch)
            described = describe(rollout, measured, rewards, self.processes)
        self._pieces = []
        self.episodes += len(rollout.replies)
        self.tokens += int(rollout.mask.sum())
        self._row = {"step": self.step_number, "episodes": self.episodes, "tokens": self.tokens, **described}
        shown = list(zip(rollout.prompts, rollout.replies, rewards.tolist(), strict=True))[: settings.recording.samples]
        self._samples = [
            Sample(row, prompt, reply, reward, messages=conversation_of(prompt))
            for row, (prompt, reply, reward) in enumerate(shown)
        ]
        self._sampled = int(rollout.mask.sum())

    def begun(self) -> None:
        """Start the clock, and let what is printed be seen again."""
        self._unprinted.close()
        self._stopwatch.enter_context(self.clock.stage("step"))

    def logged(self, log: Log) -> None:
        """Take what the trainer logs; the last log of a step makes its row."""
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
        """Return the times: what our measuring took is no part of the other library's step."""
        self._stopwatch.close()
        seconds = self.clock.take()
        seconds["time/step"] -= seconds["time/measure"]
        return {
            **seconds,
            "speed/tokens_per_second": self._sampled / seconds["time/step"],
            "memory/peak": peak_memory(self.world.policy.device),
        }

    def _not_finite(self, row: Row) -> str | None:
        """Return what has stopped being finite: a column, or a weight of the policy."""
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{key} is {value}"
        for name, parameter in self.world.policy.trainable().items():
            if not bool(torch.isfinite(parameter).all()):
                return f"{name} is not finite"
        return None


class _Callback(TrainerCallback):  # type: ignore[misc]
    """Passes on what the trainer says."""

    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped = wrapped

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Tell that training begins."""
        self.wrapped.begun()

    def on_log(self, *_: Any, logs: Log, **__: Any) -> None:
        """Pass on a log."""
        self.wrapped.logged(dict(logs))


@contextlib.contextmanager
def at_rest(policy: Policy) -> Iterator[None]:
    """Within this context the policy is as in evaluation, and after it every module as it was."""
    training = [module for module in policy.model.modules() if module.training]
    policy.model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _as_it_was(policy: Policy) -> Iterator[None]:
    """Take back, after the training, what TRL sets on the model beside its weights: mode, end token, adapters."""
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
