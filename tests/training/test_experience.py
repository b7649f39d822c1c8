"""From scores to experience: values, bootstraps, returns and whitening as the settings ask for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from safebench.algorithms.base import Experience
from safebench.rl.value_heads import soft_min
from safebench.training.measure import scatter_to_mask
from tests.support.learner import SCORES, Learner, make, nudge

DOUBLE = torch.float64
DOUBLE_HEADS = {"heads": "double", "head": "mlp", "layer_norm": True}


def experience(one: Learner | None = None, **sections: Any) -> Experience:
    return (one or make(policy={"dtype": DOUBLE}, **sections)).experience()


def by_hand(found: Experience, values: Tensor, bootstrap: Tensor, gamma: float, lam: float) -> list[list[float]]:
    """Return the advantages row by row in plain numbers, from the shaped rewards."""
    rows = []
    for row, length in enumerate(found.rollout.mask.sum(-1).tolist()):
        width = found.rollout.mask.shape[1]
        rewards, running, advantages = found.shaped[row].tolist(), 0.0, [0.0] * width
        last = min(length, width - 1)
        for t in reversed(range(last + 1)):
            following = float(bootstrap[row, t + 1]) if t < last else 0.0
            running = rewards[t] + gamma * following - float(values[row, t]) + gamma * lam * running
            advantages[t] = running
        rows.append(advantages)
    return rows


def test_the_score_is_there_once_and_kl_is_taken_off() -> None:
    found = experience(reward={"kl_coefficient": 0.05})
    mask, measured = found.rollout.mask, found.measured
    k1 = torch.where(mask, measured.log_probs - measured.reference_log_probs, 0.0)
    assert float(k1.abs().max()) > 0.1
    expected = torch.tensor(SCORES, dtype=DOUBLE) - 0.05 * k1.sum(-1)
    torch.testing.assert_close(found.shaped.sum(-1), expected, rtol=1e-6, atol=1e-12)
    lengths = mask.sum(-1)
    at = lengths.clamp(max=mask.shape[1] - 1)
    rows = torch.arange(len(lengths))
    expected = torch.tensor(SCORES, dtype=DOUBLE) - 0.05 * k1[rows, at]
    torch.testing.assert_close(found.shaped[rows, at], expected, rtol=1e-6, atol=1e-12)
    assert not found.shaped[~found.positions].any()


def test_k3_is_taken_off_where_it_is_asked_for() -> None:
    found = experience(reward={"kl_coefficient": 1.0, "kl_estimator": "k3"}, advantage={"whiten": False})
    log_ratio = found.measured.reference_log_probs - found.measured.log_probs
    k3 = torch.where(found.rollout.mask, log_ratio.exp() - 1 - log_ratio, 0.0)
    expected = torch.tensor(SCORES, dtype=DOUBLE) - k3.sum(-1)
    torch.testing.assert_close(found.shaped.sum(-1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("critic", [{}, DOUBLE_HEADS])
def test_advantages_and_returns_by_definition(critic: dict) -> None:
    found = experience(critic=critic, advantage={"gamma": 0.97, "lam": 0.9, "whiten": False})
    expected = torch.tensor(by_hand(found, found.values, found.values, 0.97, 0.9), dtype=DOUBLE)
    mask, positions = found.rollout.mask, found.positions
    torch.testing.assert_close(found.advantages[mask], expected[mask], rtol=1e-12, atol=1e-14)
    assert not found.advantages[~mask].any()
    # Returns have one real position more than advantages: the one whose reward is the score.
    torch.testing.assert_close(found.returns[positions], (expected + found.values)[positions], rtol=1e-12, atol=1e-14)
    assert not found.values[~positions].any()


def test_values_are_the_soft_minimum_of_heads_on_the_state_before_each_token() -> None:
    one = make(policy={"dtype": DOUBLE}, critic={**DOUBLE_HEADS, "softmin_alpha": 0.02})
    found = one.experience()
    with torch.no_grad():
        ids, attention = found.rollout.ids, found.rollout.attention
        states = one.policy.hidden_states(ids, attention)[:, -found.rollout.mask.shape[1] - 1 : -1]
        heads = one.critic.online(states)
    kept = found.positions
    torch.testing.assert_close(found.heads[kept], heads[kept], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.values[kept], soft_min(heads, 0.02)[kept], rtol=1e-9, atol=1e-12)
    assert (found.heads[kept][:, 0] != found.heads[kept][:, 1]).all()


def test_the_target_bootstraps_and_the_online_heads_are_the_present() -> None:
    """delta = r + gamma V_target(next) - V_online(now); at first both are one critic."""
    critic = {**DOUBLE_HEADS, "target_decay": 0.95}
    advantage = {"gamma": 0.97, "lam": 0.9, "whiten": False}
    one = make(policy={"dtype": DOUBLE}, critic=critic, advantage=advantage)
    plain = experience(critic=DOUBLE_HEADS, advantage=advantage)
    torch.testing.assert_close(one.experience().advantages, plain.advantages, rtol=0, atol=0)
    with torch.no_grad():
        for p in one.critic.online.parameters():
            p += 0.3
    found = one.experience()
    assert one.critic.target is not None
    with torch.no_grad():
        target = torch.where(found.positions, soft_min(one.critic.target(found.measured.states), 0.3), 0.0)
    assert float((target - found.values)[found.positions].abs().min()) > 0
    expected = torch.tensor(by_hand(found, found.values, target, 0.97, 0.9), dtype=DOUBLE)
    mask = found.rollout.mask
    torch.testing.assert_close(found.advantages[mask], expected[mask], rtol=1e-12, atol=1e-14)


def test_the_target_follows_by_equation_14() -> None:
    one = make(critic={**DOUBLE_HEADS, "target_decay": 0.9}, optimizer=torch.optim.AdamW)
    target, online = one.critic.target, one.critic.online
    assert target is not None
    assert not any(p.requires_grad for p in target.parameters())
    start = [p.clone() for p in target.parameters()]
    one.run(one.experience())
    assert all(torch.equal(p, was) for p, was in zip(target.parameters(), start, strict=True))
    one.critic.advance_target()
    for p, was, fast in zip(target.parameters(), start, online.parameters(), strict=True):
        torch.testing.assert_close(p, 0.9 * was + 0.1 * fast.detach(), rtol=1e-5, atol=1e-8)
        assert not torch.equal(p, was)


def test_whitening_is_over_the_reply_tokens_of_the_batch() -> None:
    plain, white = experience(advantage={"whiten": False}), experience()
    kept = plain.rollout.mask
    raw = plain.advantages[kept]
    expected = (raw - raw.mean()) / (raw.var() + 1e-8).sqrt()
    torch.testing.assert_close(white.advantages[kept], expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(white.returns, plain.returns, rtol=0, atol=0)


def test_whitened_rewards_keep_their_mean() -> None:
    options: dict[str, Any] = {"reward": {"kl_coefficient": 0.05}}
    plain, white = experience(**options), experience(**options, advantage={"whiten_rewards": True})
    kept = plain.positions
    raw = plain.shaped[kept]
    expected = (raw - raw.mean()) / (raw.var() + 1e-8).sqrt() + raw.mean()
    torch.testing.assert_close(white.shaped[kept], expected, rtol=1e-9, atol=1e-12)
    assert not white.shaped[~kept].any()


def test_experience_is_what_was_before_the_update() -> None:
    one = make(policy={"dtype": DOUBLE}, update={"epochs": 1})
    found = one.experience()
    parts = (found.measured.log_probs, found.heads, found.advantages)
    copies = [part.clone() for part in parts]
    nudge(one.policy)
    one.run(found)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))
    assert not any(x.requires_grad for x in (found.values, found.heads, found.returns, found.measured.states))


def test_spread_puts_values_back_and_lets_gradients_through() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    out = scatter_to_mask(values, mask)
    assert out.tolist() == [[1, 0], [2, 3]]
    (out * torch.tensor([[1.0, 9.0], [2.0, 3.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 2, 3]
