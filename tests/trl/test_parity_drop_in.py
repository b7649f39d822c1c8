"""The drop-in trainer beside TRL's: the same arguments and objects, the same sampled tokens; weights and log entries.

What both sides are given is one dictionary, so that every field and default of the configuration is in the comparison.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from safebench.trl import PPOConfig, PPOTrainer
from tests.support.parity_ours import begin_as, minibatches, rollout
from tests.support.parity_trl import PENALTY, Case, Record, arguments, objects, parts, run_trl, trained
from tests.support.trl_defects import OURS, quiet

CASES = {
    "whole-k3-two": Case(minibatches=2, estimator="k3", missing_eos_penalty=PENALTY),
    "whole-without-a-stop-token": Case(stops=False, missing_eos_penalty=PENALTY),
    "adapters-on-all": Case(lora=True, learning_rate=1e-2, classifiers="peft"),
    "adapters-by-transformers": Case(classifiers="add_adapter"),
    "lora-whitened-two": Case(lora=True, learning_rate=1e-2, minibatches=2, batch=16, whiten_rewards=True),
}
OVER_PADDING = ("policy/approxkl_avg", "policy/entropy_avg", "val/ratio", "val/ratio_var")
"""TRL takes these over padding too (test_trl_defects_rollouts.py)."""


@functools.cache
def both(name: str) -> tuple[Record, list[dict[str, float]], dict[str, Tensor]]:
    """Run both; return what TRL did, and our log and last weights."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        record = run_trl(case, Path(folder))
        with quiet(OURS):
            trainer = PPOTrainer(args=PPOConfig(**arguments(case, Path(folder))), **objects(case, parts(case.dtype)))
            follow(trainer, record)
            trainer.train()
    logs = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    return record, logs, trained(trainer.model.policy, trainer.model.value_model)


def follow(trainer: Any, record: Record) -> None:
    """Let the trainer begin with TRL's weights, and sample and shuffle as it did."""
    begin_as(record, trainer.model.policy)
    loop = trainer._loop
    loop._sample = lambda: rollout(record.updates[loop.step_number - 1], record.case.stops)
    loop.updater._minibatches = functools.partial(minibatches, record)


@pytest.mark.parametrize("name", CASES)
def test_the_same_arguments_give_the_same_weights(name: str) -> None:
    record, _, ours = both(name)
    theirs = record.updates[-1].weights
    assert ours.keys() == theirs.keys()
    apart = {key: float((ours[key] - w).norm() / w.norm()) for key, w in theirs.items()}
    assert {key: off for key, off in apart.items() if not off <= 1e-4} == {}


@pytest.mark.parametrize("name", CASES)
def test_the_same_arguments_give_the_same_log(name: str) -> None:
    """Of each update: every key that TRL logs, but the speed and what it takes over padding."""
    record, logs, _ = both(name)
    assert len(logs) == len(record.logs) == 5
    for ours, theirs in zip(logs, record.logs, strict=True):
        assert theirs.keys() <= ours.keys()
        for key in theirs.keys() - {"eps", *OVER_PADDING}:
            # Means of numbers near 1, some of which cancel: as many digits as float32 leaves.
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=2e-6), key
