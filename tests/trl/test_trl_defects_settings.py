"""Settings that TRL 1.12.0's PPOTrainer silently ignores, and ours follows."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.parity_trl import parts
from tests.support.trl_defects import OURS, TRL, Count, Kind, before_each_step, gradient_norm, make, train

LIMIT, BATCHES, EPOCHS, PARTS = 1e-3, 4, 2, 2


@dataclass
class Seen:
    """What was seen of one training with all of these settings."""

    count: Count
    norms: list[float] = field(default_factory=list)
    """Of the policy's gradient at each optimizer step."""
    types: set[torch.dtype] = field(default_factory=set)
    """Of what a linear layer of the policy computes in updates."""
    passes: int = 0
    """Through one layer in updates, recomputed ones included."""


@functools.cache
def seen(kind: Kind) -> Seen:
    """Train once, with every setting that is asked about."""
    made, found = parts(), Seen(Count())

    def look(module: Any, inputs: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            found.types.add(output.dtype)
            found.passes += 1

    made.policy.model.layers[0].mlp.up_proj.register_forward_hook(look)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(
            kind,
            Path(folder),
            made,
            callbacks=[found.count],
            steps=BATCHES,
            num_ppo_epochs=EPOCHS,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_mini_batches=PARTS,
            max_grad_norm=LIMIT,
            bf16=True,
            gradient_checkpointing=True,
            logging_steps=2,
            eval_strategy="steps",
            eval_steps=2,
        )
        found.passes = 0  # the probes before the training are none of its updates
        with before_each_step(lambda: found.norms.append(gradient_norm(made.policy))):
            train(kind, trainer)
    return found


def gradients_are_clipped(found: Seen) -> None:
    """``max_grad_norm``."""
    assert max(found.norms) <= LIMIT * (1 + 1e-5), f"a gradient of norm {max(found.norms):.0e}"


def it_computes_in_bfloat16(found: Seen) -> None:
    """``bf16``."""
    assert found.types == {torch.bfloat16}, f"computed in {found.types}"


def layers_are_recomputed(found: Seen) -> None:
    """``gradient_checkpointing``: once forward and once again in the backward pass, for each four rows."""
    passes = found.passes / (BATCHES * EPOCHS * PARTS)
    assert passes == 2, f"{passes} passes for each four rows"


def it_logs_every_so_many_updates(found: Seen) -> None:
    """``logging_steps``."""
    assert found.count.logs == [2, 4], f"logged at {found.count.logs}"


def it_evaluates_every_so_many_updates(found: Seen) -> None:
    """``eval_strategy`` and ``eval_steps``."""
    assert found.count.evaluations == [2, 4], f"evaluated at {found.count.evaluations}"


def every_mini_batch_is_an_update(found: Seen) -> None:
    """``num_mini_batches`` with gradient accumulation.

    TRL makes an update of every two of them; of every one, where accelerate sees the data set end: 3 x 2 + 4.
    """
    made, wanted = len(found.norms), BATCHES * EPOCHS * PARTS
    assert made == wanted, f"{made} updates, not {wanted}"


CHECKS = {
    gradients_are_clipped: r"a gradient of norm \de[+-]0[0-2]",
    it_computes_in_bfloat16: r"computed in \{torch.float32\}",
    it_logs_every_so_many_updates: r"logged at \[1, 2, 3, 4\]",
    it_evaluates_every_so_many_updates: r"evaluated at \[\]",
    every_mini_batch_is_an_update: "10 updates, not 16",
    layers_are_recomputed: "1.0 passes for each four rows",
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_trl_ignores_it(check: Any) -> None:
    with pytest.raises(AssertionError, match=CHECKS[check]):
        check(seen(TRL))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_ours_follows_it(check: Any) -> None:
    check(seen(OURS))
