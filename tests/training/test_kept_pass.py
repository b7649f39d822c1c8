"""The pass that a batch was measured with is that of its first update."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from safebench.training.measure import measure
from tests.support.learner import SAFE_LIKE, learner
from tests.support.tiny import tiny_policy, tiny_rollout, tiny_settings, tiny_world


def test_the_pass_that_was_measured_serves_the_first_update_to_the_bit() -> None:
    """One pass over the batch less, and the same gradient, weights and statistics as with a pass of its own."""
    found = []
    for keep in (True, False):
        one = learner(tiny_settings("safe", **{**SAFE_LIKE, "update": {"epochs": 2}}), tiny_policy(moved=0.3))
        experience = one.experience()
        measured = measure(one.policy, experience.rollout, 1.0, keep_graph=keep)
        assert (measured.graph is not None) == keep
        passes = []
        handle = one.policy.base.get_decoder().register_forward_hook(lambda *_, kept=passes: kept.append(1))
        tally = one.run(dataclasses.replace(experience, measured=measured))
        handle.remove()
        assert len(passes) == (1 if keep else 2)
        found.append((one.policy_weights(), one.critic_weights(), tally.means()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize(
    ("sections", "policy", "whole"),
    [
        ({}, {}, True),
        ({"update": {"microbatch": 8}}, {}, True),
        ({"update": {"microbatch": 4}}, {}, False),
        ({"update": {"minibatches": 2}}, {}, False),
        ({}, {"dropout": 0.1}, False),
    ],
)
def test_only_one_pass_over_the_whole_batch_is_kept(
    sections: dict[str, Any], policy: dict[str, Any], whole: bool
) -> None:
    one = learner(tiny_settings("ppo", **sections), tiny_policy(**policy))
    assert one.updater.takes_whole_batch() == whole
    loop = Loop(one.settings, tiny_world(one.policy), Processes(one.settings.compute))
    passes: list[bool] = []
    one.policy.base.get_decoder().register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    loop.step()
    update = one.settings.update
    updates = update.epochs * 8 // min(update.microbatch or 8, 8 // update.minibatches)
    assert sum(passes) == updates, "a kept pass is not made again"


def test_several_passes_cannot_be_kept() -> None:
    policy = tiny_policy()
    with pytest.raises(ValueError, match="one pass can be kept, not 2"):
        measure(policy, tiny_rollout(policy), 1.0, 4, keep_graph=True)
