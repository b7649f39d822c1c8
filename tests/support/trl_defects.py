"""One check, two trainers: TRL 1.12.0's PPOTrainer, which fails it, and ours, which passes it.

A check takes a ``Kind`` and a folder and raises where the trainer does not do what its arguments say.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainerCallback

from tests.support.parity_trl import Parts, left_padding, parts, plain
from tests.support.tiny import VOCABULARY

ROWS = 8
REPLY = 6


@dataclass(frozen=True)
class Kind:
    """Whose trainer it is."""

    name: str

    @property
    def classes(self) -> tuple[Any, Any]:
        """The trainer and its configuration."""
        if self.name == "ours":
            from safebench import trl
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from trl.experimental import ppo as trl  # type: ignore[no-redef]
        return trl.PPOTrainer, trl.PPOConfig


TRL, OURS = Kind("trl"), Kind("ours")
Check = Callable[[Kind, Path], None]
Test = Callable[[Check, Path], None]


def both(checks: dict[Check, tuple[type[Exception], str]]) -> tuple[Test, Test]:
    """Return two tests of ``checks``: TRL's trainer fails each with the given error and message, ours passes it."""
    each = pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)

    def trl_fails(check: Check, tmp_path: Path) -> None:
        error, message = checks[check]
        with pytest.raises(error, match=message):
            check(TRL, tmp_path)

    def ours_passes(check: Check, tmp_path: Path) -> None:
        check(OURS, tmp_path)

    return each(trl_fails), each(ours_passes)


@contextlib.contextmanager
def quiet(kind: Kind) -> Iterator[None]:
    """Let TRL warn; of ours, let pass only what peft 0.21 says of transformers 5.23, and what it prints."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        if kind == TRL:
            warnings.simplefilter("ignore")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def prompts(rows: int = 32, length: int = 3) -> Dataset:
    """Prompts of one length."""
    ids = [[2 + (5 * row + place) % (VOCABULARY - 2) for place in range(length)] for row in range(rows)]
    return Dataset.from_list([{"input_ids": row} for row in ids])


def make(
    kind: Kind,
    folder: Path,
    made: Parts | None = None,
    *,
    tokenizer: Any = None,
    dataset: Dataset | None = None,
    callbacks: list[TrainerCallback] | None = None,
    steps: int = 1,
    **arguments: Any,
) -> Any:
    """Return a trainer of tiny models; ``arguments`` are the configuration's, by TRL's names."""
    made = made or parts()
    trainer, config = kind.classes
    given = {
        **plain(folder),
        "seed": 5,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "num_ppo_epochs": 1,
        "response_length": REPLY,
        "temperature": 1.0,
        "stop_token": "eos",
        "learning_rate": 1e-3,
        **arguments,
    }
    given.setdefault(
        "total_episodes", given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] * steps
    )
    with quiet(kind):
        return trainer(
            args=config(**given),
            processing_class=tokenizer or left_padding(),
            model=made.policy,
            ref_model=None,
            reward_model=made.reward,
            value_model=made.value,
            train_dataset=dataset or prompts(),
            eval_dataset=prompts(ROWS),
            callbacks=callbacks,
        )


def train(kind: Kind, trainer: Any, **arguments: Any) -> list[dict[str, float]]:
    """Train, and return the log entries of the updates."""
    with quiet(kind), contextlib.ExitStack() as stack:
        if kind == TRL:
            from trl.experimental.ppo import ppo_trainer

            stack.enter_context(mock.patch.object(ppo_trainer, "gc"))  # most of a tiny run's time
        trainer.train(**arguments)
    return [entry for entry in trainer.state.log_history if "objective/kl" in entry]


@contextlib.contextmanager
def before_each_step(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` before each step of any optimizer."""
    handle = register_optimizer_step_pre_hook(lambda *_: look())
    try:
        yield
    finally:
        handle.remove()


def gradient_norm(model: nn.Module) -> float:
    """The norm of the gradient of all parameters."""
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def copies(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Count(TrainerCallback):
    """Counts events, and asks for the end of training after ``stop`` steps."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.steps, self.logs, self.evaluations = stop, 0, list[int](), list[int]()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count, and stop."""
        self.steps += 1
        if self.steps == self.stop:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Note when."""
        if "objective/kl" in logs:
            self.logs.append(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when."""
        self.evaluations.append(state.global_step)
