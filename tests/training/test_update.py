"""Updates on a tiny policy: where gradients come from, where they go, and when they must not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from safebench.training.measure import measure
from safebench.training.update import UpdateMetrics
from tests.support.learner import ONE, SCORES, Learner, make, nudge

DOUBLE = torch.float64


# The first update of a batch starts from the policy that sampled it


@pytest.mark.parametrize("arm", ["ppo", "safe"])
@pytest.mark.parametrize("microbatch", [None, 3])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_first_ratio_is_one_to_the_bit_whatever_dropout_the_model_declares(
    arm: str, microbatch: int | None, gradient_checkpointing: bool
) -> None:
    dropout = {"attention_dropout": 0.5, "gradient_checkpointing": gradient_checkpointing}
    one = make(arm, policy=dropout, update={**ONE, "microbatch": microbatch})
    means = (tally := one.run(one.experience())).means()
    assert (means["update/clip_fraction"], means["update/approx_kl"], tally.ratio_max) == (0.0, 0.0, 1.0)
    assert tally.updates == 1


def test_later_ratios_are_not_one() -> None:
    one = make(update={"epochs": 2, "learning_rate": 0.5})
    tally = one.run(one.experience())
    assert tally.updates == 2
    assert tally.ratio_max > 1
    assert tally.means()["update/approx_kl"] > 0


def test_ratio_statistics_by_definition() -> None:
    one = make(policy={"dtype": DOUBLE}, update=ONE)
    experience = one.experience()
    nudge(one.policy)
    now = measure(one.policy, experience.rollout, 1.0).log_probs
    kept = experience.rollout.mask
    log_ratio = (now - experience.measured.log_probs)[kept]
    ratio, advantages = log_ratio.exp(), experience.advantages[kept]
    cut = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    means = (tally := one.run(experience)).means()
    assert 0 < float(cut.double().mean()) < 1
    assert means["update/clip_fraction"] == pytest.approx(float(cut.double().mean()), rel=1e-12)
    assert means["update/approx_kl"] == pytest.approx(float(log_ratio.square().mean()) / 2, rel=1e-9)
    assert tally.ratio_max == pytest.approx(float(ratio.max()), rel=1e-9)


# Gradients


@pytest.mark.parametrize("arm", ["ppo", "safe"])
@pytest.mark.parametrize("microbatch", [1, 3, 5])
def test_microbatches_add_up_to_the_minibatch(arm: str, microbatch: int) -> None:
    def update(size: int | None) -> tuple[Learner, UpdateMetrics]:
        one = make(arm, policy={"dtype": DOUBLE}, update={**ONE, "microbatch": size})
        experience = one.experience()
        nudge(one.policy)
        return one, one.run(experience, gradient_norms=True)

    (whole, expected), (parts, tally) = update(None), update(microbatch)
    difference = parts.gradients() - whole.gradients()
    assert float(difference.norm()) <= 1e-10 * float(whole.gradients().norm())
    assert tally.means() == pytest.approx(expected.means(), rel=1e-10)
    assert tally.gradients == pytest.approx(expected.gradients, rel=1e-6)
    assert set(expected.gradients) == {f"grad/{name}" for name in whole.algorithm.names}
    assert all(value > 0 for value in expected.gradients.values())


def test_recomputed_layers_give_the_same_gradients() -> None:
    def gradients(gradient_checkpointing: bool) -> torch.Tensor:
        one = make("safe", policy={"dtype": DOUBLE, "gradient_checkpointing": gradient_checkpointing}, update=ONE)
        one.run(one.experience(), gradient_norms=True)
        assert not any(module.training for module in one.policy.model.modules())
        return one.gradients()

    plain, recomputed = gradients(False), gradients(True)
    assert float((recomputed - plain).norm()) <= 1e-12 * float(plain.norm())


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_is_the_slope_of_the_reported_loss(detach: bool) -> None:
    """Along a random direction, central differences of loss/total over policy and critic together."""
    # What the value loss says of the policy is left out on purpose where it is detached: do not ask for it.
    one = make(
        policy={"dtype": DOUBLE},
        update={**ONE, "learning_rate": 1e-12},
        critic={"detach": detach},
        loss={"value_coefficient": 0.0 if detach else 0.1},
    )
    experience = one.experience()
    nudge(one.policy)
    owners = [*one.updater.policy_parameters, *one.updater.critic_parameters]
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=DOUBLE) for p in owners]
    start = [p.detach().clone() for p in owners]

    def loss(h: float) -> float:
        with torch.no_grad():
            for p, at, d in zip(owners, start, direction, strict=True):
                p.copy_(at + h * d)
        return one.run(experience).means()["loss/total"]

    loss(0.0)
    slope = sum(float((p.grad * d).sum()) for p, d in zip(owners, direction, strict=True) if p.grad is not None)
    assert (loss(1e-6) - loss(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-6)
    assert abs(slope) > 1e-3


def test_each_terms_gradient_is_its_own() -> None:
    """With a detached critic the policy's gradient is the policy term's, the critic's the value term's."""
    one = make(update=ONE)
    experience = one.experience()
    nudge(one.policy)
    tally = one.run(experience, gradient_norms=True)
    means = tally.means()
    assert tally.gradients["grad/policy"] == pytest.approx(means["grad/norm"], rel=1e-5)
    assert tally.gradients["grad/value"] == pytest.approx(means["grad/critic_norm"], rel=1e-5)


def test_measuring_the_terms_gradients_changes_nothing() -> None:
    def weights(gradient_norms: bool) -> tuple[UpdateMetrics, torch.Tensor]:
        one = make("safe")
        tally = one.run(one.experience(), gradient_norms=gradient_norms)
        return tally, torch.cat([one.policy_weights(), one.critic_weights()])

    (without, plain), (measured, same) = weights(False), weights(True)
    assert torch.equal(plain, same)
    assert not without.gradients
    assert measured.gradients
    assert without.means() == measured.means()


def test_the_total_is_the_sum_of_the_terms() -> None:
    one = make("safe", policy={"dtype": DOUBLE})
    means = one.run(one.experience()).means()
    assert means["loss/total"] == pytest.approx(sum(means[f"loss/{name}"] for name in one.algorithm.names), rel=1e-12)
    assert one.algorithm.names == ("policy", "value", "entropy", "penalty")


# When a number stops being finite


def weights(one: Learner) -> torch.Tensor:
    return torch.cat([one.policy_weights(), one.critic_weights()])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["advantages", "returns"])
def test_a_bad_number_leaves_the_weights_and_the_optimizer_untouched(field: str, value: float) -> None:
    one = make(optimizer=torch.optim.AdamW)
    experience = one.experience()
    bad = getattr(experience, field).clone()
    bad[3, 0] = value
    before = weights(one)
    tally = one.run(dataclasses.replace(experience, **{field: bad}))
    assert torch.equal(weights(one), before)
    assert not one.updater.optimizer.state
    assert tally.broken is not None
    assert tally.updates == 1
    # The next batch finds everything in order.
    assert one.run(experience, 2).broken is None
    assert not torch.equal(weights(one), before)


@pytest.mark.parametrize("arm", ["ppo", "safe"])
def test_a_bad_reward_breaks_the_step(arm: str) -> None:
    one = make(arm)
    before = weights(one)
    tally = one.run(one.experience([math.nan, *SCORES[1:]]))
    assert tally.broken is not None
    assert torch.equal(weights(one), before)


def test_a_bad_ratio_shows_in_its_maximum() -> None:
    one = make()
    experience = one.experience()
    logs = experience.measured.log_probs.clone()
    logs[5, 0] = math.nan
    tally = one.run(dataclasses.replace(experience, measured=dataclasses.replace(experience.measured, log_probs=logs)))
    assert math.isnan(tally.ratio_max)
    assert tally.broken is not None


def test_an_infinite_ratio_is_not_hidden_by_the_clip() -> None:
    one = make()
    experience = one.experience()
    logs = experience.measured.log_probs.clone()
    row, t = torch.nonzero(experience.rollout.mask & (experience.advantages > 0))[0].tolist()
    logs[row, t] = -1000.0
    before = weights(one)
    tally = one.run(dataclasses.replace(experience, measured=dataclasses.replace(experience.measured, log_probs=logs)))
    assert tally.ratio_max == math.inf
    assert tally.broken is not None
    assert torch.equal(weights(one), before)


# Mini-batches, clipping, rates


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 2), (2, 3), (8, 1)])
def test_every_epoch_sees_every_row_once(minibatches: int, epochs: int) -> None:
    one = make(update={"minibatches": minibatches, "epochs": epochs})
    parts = list(one.updater._minibatches(3))
    assert len(parts) == minibatches * epochs
    for epoch in range(epochs):
        rows = [row for part in parts[epoch * minibatches : (epoch + 1) * minibatches] for row in part]
        assert sorted(rows) == list(range(8))
    assert one.run(one.experience()).updates == minibatches * epochs


def test_minibatches_are_shuffled_by_seed_step_and_epoch() -> None:
    one = make(update={"minibatches": 2, "epochs": 2})
    first, second = list(one.updater._minibatches(3)), list(one.updater._minibatches(4))
    assert list(one.updater._minibatches(3)) == first
    assert first != second
    assert first[:2] != first[2:]


def test_a_minibatch_is_weighed_by_its_tokens() -> None:
    """Mean over the tokens of the mini-batch, not over its replies: long replies weigh more."""
    one = make(policy={"dtype": DOUBLE}, update=ONE, loss={"value_coefficient": 0.0})
    experience = one.experience()
    assert len(set(experience.rollout.mask.sum(-1).tolist())) > 2
    kept = experience.rollout.mask
    raw = dataclasses.replace(experience, advantages=torch.where(kept, experience.returns, 0.0))
    assert one.run(raw).means()["loss/policy"] == pytest.approx(-float(raw.advantages[kept].mean()), rel=1e-12)


def test_policy_and_critic_are_clipped_apart_and_the_norm_is_from_before() -> None:
    def norms(**update: Any) -> tuple[dict[str, float], float, float]:
        one = make(policy={"dtype": DOUBLE}, update={**ONE, **update})
        tally = one.run(one.experience())
        split = sum(p.numel() for p in one.updater.policy_parameters)
        gradients = one.gradients()
        return tally.means(), float(gradients[:split].norm()), float(gradients[split:].norm())

    means, policy, critic = norms()
    assert (means["grad/norm"], means["grad/critic_norm"]) == pytest.approx((policy, critic), rel=1e-12)
    clipped, small, same = norms(max_grad_norm=policy / 4)
    assert clipped == means
    # torch divides by the norm plus 1e-6.
    assert small == pytest.approx(policy / 4, rel=1e-5)
    assert same == critic
    _, same, small = norms(critic_max_grad_norm=critic / 4)
    assert same == policy
    assert small == pytest.approx(critic / 4, rel=1e-4)


def test_rates_follow_the_schedule() -> None:
    one = make(update={"steps": 10, "schedule": "linear", "learning_rate": 1e-2, "critic_learning_rate": 1e-3})
    experience = one.experience()
    for step, factor in ((1, 1.0), (2, 0.9), (10, 0.1)):
        one.run(experience, step)
        rates = [group["lr"] for group in one.updater.optimizer.param_groups]
        assert rates == pytest.approx([1e-2 * factor, 1e-3 * factor], rel=1e-12)


def test_a_constant_rate_serves_both() -> None:
    one = make(update={"learning_rate": 1e-2})
    one.run(one.experience(), 7)
    assert [group["lr"] for group in one.updater.optimizer.param_groups] == [1e-2, 1e-2]
