"""Replicates of runs: another order of sums changes rounding, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from safebench.algorithms.base import ScoredBatch
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from safebench.training.measure import measure
from tests.support.learner import ONE, SCORES, Learner, make
from tests.support.tiny import tiny_policy, tiny_settings, tiny_world

FLOAT32 = 2.0**-23


def first_update(replicate: int, microbatch: int | None, arm: str = "ppo") -> tuple[Learner, dict[str, float]]:
    """The learner after one update, and the update's means."""
    one = make(arm, update={**ONE, "microbatch": microbatch})
    experience = one.experience()
    rollout = dataclasses.replace(experience.rollout, replicate=replicate)
    keep = one.updater.takes_whole_batch()
    measured = measure(one.policy, rollout, 1.0, microbatch, keep_graph=keep)
    batch = ScoredBatch(one.policy, one.critic, rollout, measured, torch.tensor(SCORES))
    return one, one.run(one.algorithm.advantages(batch)).means()


@pytest.mark.parametrize("arm", ["ppo", "safe"])
@pytest.mark.parametrize("microbatch", [None, 3, 1])
def test_a_replicate_differs_from_its_original_by_rounding_alone(arm: str, microbatch: int | None) -> None:
    (original, means), (again, others) = (first_update(replicate, microbatch, arm) for replicate in (0, 1))
    gradient, other = original.gradients(), again.gradients()
    assert not torch.equal(gradient, other), "another order of sums, and not one bit of all gradients is another"
    assert float((other - gradient).norm()) <= 100 * FLOAT32 * float(gradient.norm())
    assert others == pytest.approx(means, rel=1e-4, abs=1e-6)


def test_a_replicate_is_the_same_every_time_and_each_is_another() -> None:
    first, again, second = (first_update(replicate, None)[0].gradients() for replicate in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_groups_hold_the_same_rows_in_another_order() -> None:
    rollout = make().experience().rollout
    other = dataclasses.replace(rollout, replicate=1)
    for size in (None, 1, 3):
        groups, moved = rollout.groups(size), other.groups(size)
        assert sorted(map(sorted, moved)) == sorted(map(sorted, groups))
        assert moved != groups
    assert dataclasses.replace(rollout, replicate=0).groups(3) == rollout.groups(3)


def test_a_loop_samples_the_same_first_batch_and_then_rounds_otherwise() -> None:
    def rows(replicate: int) -> list[dict[str, Any]]:
        settings = tiny_settings("ppo", compute={"replicate": replicate})
        loop = Loop(settings, tiny_world(tiny_policy()), Processes(settings.compute))
        return [loop.step()[0] for _ in range(2)]

    original, again = rows(0), rows(1)
    assert {key: original[0][key] for key in ("tokens", "reward/mean", "reply/length")} == {
        key: again[0][key] for key in ("tokens", "reward/mean", "reply/length")
    }
    assert again[0]["loss/total"] == pytest.approx(original[0]["loss/total"], rel=1e-4, abs=1e-6)
    different = [
        key
        for row, other in zip(original, again, strict=True)
        for key in row
        if not key.startswith(("time/", "speed/", "memory/")) and row[key] != other[key]
    ]
    assert different, "not one figure of two steps moved"
