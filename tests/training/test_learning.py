"""The whole loop learns: a tiny policy comes to prefer the one word that is rewarded, unless KL control holds it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from safebench.metrics import BY_KEY
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from tests.support.learner import SAFE_LIKE
from tests.support.tiny import tiny_policy, tiny_settings, tiny_world


def rows(arm: str, steps: int, **sections: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the loop on a reward for the share of one word in the reply; return its rows."""
    shared = {"update": {"steps": steps, "learning_rate": 4e-2, "epochs": 2}, "rollout": {"batch": 32}}
    settings = tiny_settings(arm, **(SAFE_LIKE if arm == "safe" else {}), **{**shared, **sections})
    loop = Loop(settings, tiny_world(tiny_policy()), Processes(settings.compute))
    seen = [loop.step()[0] for _ in range(steps)]
    assert loop.broken is None
    return seen


@functools.cache
def free(arm: str) -> list[dict[str, Any]]:
    """Return a run without any KL control."""
    return rows(arm, 30, **({"penalty": {"coefficient": 0.0}} if arm == "safe" else {}))


@pytest.mark.parametrize("arm", ["ppo", "safe"])
def test_a_policy_learns_a_trivial_reward(arm: str) -> None:
    seen = [row["reward/mean"] for row in free(arm)]
    # One word of 62 is rewarded; in the end it is about every second.
    assert sum(seen[:2]) / 2 < 0.1
    assert sum(seen[-5:]) / 5 > 0.4
    assert free(arm)[-1]["critic/value"] > 0.2


def test_the_penalty_holds_the_kl() -> None:
    held = rows("safe", 15, penalty={"coefficient": 20.0})
    assert held[-1]["kl/mean"] < 0.9
    assert free("safe")[14]["kl/mean"] > 2 * held[-1]["kl/mean"]


def test_the_kl_in_the_reward_holds_it_too() -> None:
    held = rows("ppo", 15, reward={"kl_coefficient": 1.0})
    assert free("ppo")[14]["kl/mean"] > 2 * held[-1]["kl/mean"]


def test_two_runs_with_one_seed_are_one() -> None:
    one, other = rows("safe", 3), rows("safe", 3)
    for a, b in zip(one, other, strict=True):
        for key, value in a.items():
            if not BY_KEY[key].environment:
                assert value == b[key] or (math.isnan(value) and math.isnan(b[key])), key


def test_arms_share_their_first_batch() -> None:
    """Paired by seed: weights, prompts and noise are the same until the first update."""
    ppo, safe = free("ppo")[0], free("safe")[0]
    for key in ("reward/mean", "reward/std", "kl/mean", "entropy/mean", "reply/length", "reply/distinct", "tokens"):
        assert ppo[key] == safe[key]
    assert (ppo["kl/mean"], ppo["kl/max"], ppo["kl/sampled"]) == (0.0, 0.0, 0.0)
