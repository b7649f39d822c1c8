"""Who moves whom: value loss, separate body, penalty and entropy bonus, each on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safebench.training.measure import measure
from tests.support.learner import ONE, make, without_advantage

DOUBLE = torch.float64
ONLY_THE_PENALTY = {"value_coefficient": 0.0, "entropy_coefficient": 0.0}


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_value_loss_moves_the_policy_only_where_it_may(detach: bool, optimizer: Any) -> None:
    one = make(critic={"detach": detach}, optimizer=optimizer)
    experience = without_advantage(one.experience())
    policy, critic = one.policy_weights(), one.critic_weights()
    one.run(experience)
    assert torch.equal(one.policy_weights(), policy) == detach
    assert not torch.equal(one.critic_weights(), critic)


def test_a_separate_value_body_learns_and_leaves_the_policy_alone() -> None:
    critic = {"body": "separate", "detach": False}
    one = make(critic=critic, loss={"value_clip": None}, optimizer=torch.optim.AdamW)
    experience = without_advantage(one.experience())
    body = one.critic.body
    assert body is not None
    assert not [name for name, _ in body.named_parameters() if "lora" in name]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in body.parameters())
    rollout = experience.rollout
    with torch.no_grad():
        features = one.critic.features(experience.measured.states, rollout.ids, rollout.attention)
    # It starts as the reference's own decoder, not as the moved policy.
    assert torch.equal(features[rollout.mask], experience.measured.reference_states[rollout.mask])
    policy, base = one.policy_weights(), one.policy.output_weight.clone()
    before = [p.detach().clone() for p in body.parameters()]
    first = one.run(experience).means()["loss/value"]
    assert torch.equal(one.policy_weights(), policy)
    assert torch.equal(one.policy.output_weight, base)
    moved = [not torch.equal(p, was) for p, was in zip(body.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2
    for _ in range(10):
        last = one.run(experience).means()["loss/value"]
    assert last < 0.5 * first


def test_the_penalty_steers() -> None:
    """Coefficient 0 or 1000: in the released code the weights come out bit-identical."""

    def weights(**penalty: Any) -> tuple[torch.Tensor, float]:
        one = make("safe", policy={"dtype": DOUBLE}, penalty=penalty)
        return (one.run(one.experience()), one.policy_weights())[1], one.algorithm.signal.threshold  # type: ignore[attr-defined]

    none, _ = weights(coefficient=0.0)
    strong, _ = weights(coefficient=1000.0)
    wide, tau = weights(base_threshold=0.1)
    narrow, lower = weights(base_threshold=0.2)
    assert not torch.equal(none, strong)
    assert tau != lower
    assert not torch.equal(wide, narrow)


def test_the_penaltys_gradient_is_twice_the_gated_excess_times_that_of_the_kl() -> None:
    one = make("safe", policy={"dtype": DOUBLE}, update=ONE, loss=ONLY_THE_PENALTY)
    experience = without_advantage(one.experience())
    # The KL's gradient from the model's own logits, row by row, without padding.
    rollout = experience.rollout
    total = torch.zeros((), dtype=DOUBLE)
    for row in range(len(rollout.prompts)):
        ids = rollout.ids[row][rollout.attention[row].bool()][None]
        length = int(rollout.mask[row].sum())
        p = one.policy.model(input_ids=ids).logits[0, -length - 1 : -1].log_softmax(-1)
        with one.policy.as_reference(), torch.no_grad():
            r = one.policy.model(input_ids=ids).logits[0, -length - 1 : -1].log_softmax(-1)
        total = total + (p.exp() * (p - r)).sum()
    slopes = torch.autograd.grad(total / rollout.mask.sum(), one.updater.policy_parameters)
    tally = one.run(experience, gradient_norms=True)
    signal = one.algorithm.signal  # type: ignore[attr-defined]
    excess = signal.kl_short - signal.threshold
    assert excess > 0
    assert tally.means()["loss/penalty"] == pytest.approx(signal.gate * 0.1 * excess**2, rel=1e-12)
    expected = 2 * signal.gate * 0.1 * excess * torch.cat([s.flatten() for s in slopes])
    found = one.gradients()[: len(expected)]
    assert float((found - expected).norm()) <= 1e-9 * float(expected.norm())
    assert tally.gradients["grad/penalty"] == pytest.approx(float(expected.norm()), rel=1e-6)


def test_a_step_on_the_penalty_alone_brings_the_kl_down() -> None:
    one = make("safe", update={**ONE, "learning_rate": 0.05}, loss=ONLY_THE_PENALTY)
    experience = without_advantage(one.experience())
    before = one.kl(experience)
    one.run(experience)
    assert one.kl(experience) < before - 1e-3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("moved", [0.05, 0.15, 0.3, 0.6])
def test_wherever_there_is_a_penalty_it_points_towards_the_reference(seed: int, moved: float) -> None:
    """A short step of plain gradient descent on it alone, from any policy: its gradient is there, and KL falls."""
    settings = {"update": {**ONE, "learning_rate": 1e-4}, "loss": ONLY_THE_PENALTY}
    one = make("safe", policy={"dtype": DOUBLE, "seed": seed, "moved": moved}, **settings)
    experience = without_advantage(one.experience())
    before, weights = one.kl(experience), one.policy_weights()
    tally = one.run(experience, gradient_norms=True)
    penalty, norm = tally.means()["loss/penalty"], tally.gradients["grad/penalty"]
    assert (penalty > 0) == (norm > 0) == (before > 0.45)
    if penalty > 0:
        # To first order KL falls by the rate times ||grad||^2 over the penalty's slope in KL.
        assert before - one.kl(experience) > 0
    else:
        assert torch.equal(one.policy_weights(), weights)


def test_on_both_sides_it_draws_a_policy_up_to_the_threshold() -> None:
    one = make(
        "safe",
        policy={"dtype": DOUBLE, "moved": 0.05},
        update={**ONE, "learning_rate": 1e-2},
        loss=ONLY_THE_PENALTY,
        penalty={"asymmetric": False},
    )
    experience = without_advantage(one.experience())
    before = one.kl(experience)
    assert 0 < before < 0.3
    assert one.run(experience).means()["loss/penalty"] > 0
    assert one.kl(experience) > before


def test_below_the_threshold_the_penalty_is_nothing_at_all() -> None:
    one = make("safe", policy={"moved": 0.01})
    tally = one.run(one.experience(), gradient_norms=True)
    assert tally.means()["loss/penalty"] == 0.0
    assert tally.gradients["grad/penalty"] == 0.0


def test_the_entropy_bonus_raises_entropy() -> None:
    only = {"loss": {"value_coefficient": 0.0}, "penalty": {"coefficient": 0.0}}
    one = make("safe", update={**ONE, "learning_rate": 5.0}, **only)
    experience = without_advantage(one.experience())
    kept = experience.rollout.mask
    one.run(experience)
    after = measure(one.policy, experience.rollout, 1.0).entropy[kept].mean()
    assert after > experience.measured.entropy[kept].mean() + 1e-3
