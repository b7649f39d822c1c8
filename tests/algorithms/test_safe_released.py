"""What SAFE's released code really does, item by item, in the arms safe-official and ppo-official as shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safebench import config
from safebench.algorithms.base import Experience, ForwardOutput, MiniBatch
from safebench.algorithms.safe_released import ReleasedPPO, ReleasedSAFE
from safebench.config import schema as s
from safebench.config import yaml_text
from safebench.config.schema import Penalty
from safebench.errors import BadResource, UsageError
from safebench.models import seeding
from safebench.models.policy import Policy
from safebench.rl.losses import value_loss
from safebench.rl.value_heads import ValueHeads, soft_min
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from safebench.training.measure import measure
from tests.support.learner import without_advantage
from tests.support.tiny import PAD, STOPS, share_of_a, tiny_policy, tiny_rollout, tiny_world

SMALL: dict[str, Any] = {
    "reward": {"name": "share", "judge": None},
    "rollout": {"batch": 8, "reply_tokens": 6},
    "update": {"steps": 10, "learning_rate": 1e-2, "microbatch": None},
    "compute": {"device": "cpu"},
    "recording": {"gradient_norms_every": 1},
}
PLAIN: dict[str, Any] = {"model": {"lora": {"dropout": 0.0}}, "critic": {"dtype": "float32"}}
"""Without dropout and coarse rounding, for what is compared with a calculation of its own."""
TIGHT: dict[str, Any] = {"base_threshold": 0.01, "min_threshold": 0.0}
"""A threshold that the moved policy's KL is above."""


def released(name: str = "safe-official", moved: float = 0.3, policy: Policy | None = None, **sections: Any) -> Loop:
    """Return a loop with the shipped experiment's settings, its sizes cut down, and ``sections`` laid over them."""
    content = config.resolve(name).model_dump()
    for layer in (SMALL, sections):
        _lay(content, layer)
    settings = s.Settings.model_validate(content)
    made = policy or tiny_policy(moved=moved, dropout=settings.model.lora.dropout)
    return Loop(settings, tiny_world(made, share_of_a), Processes(settings.compute))


def _lay(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay(below[key], value)
        else:
            below[key] = value


def experience(loop: Loop) -> Experience:
    """Sample and appraise the batch of the next step, without updating."""
    loop.step_number += 1
    rollout = loop._sample()
    rewards = loop._score(rollout)
    return loop._advantages(rollout, measure(loop.world.policy, rollout, 1.0), rewards)


def weights(loop: Loop) -> Tensor:
    """Return all trained weights, flat."""
    owners = [*loop.updater.policy_parameters, *loop.updater.critic_parameters]
    return torch.cat([p.detach().flatten().float() for p in owners])


def whole_states(policy: Policy, found: Experience) -> Tensor:
    """Return the hidden states as the release's own call has them: no positions given, padding told by its id."""
    ids = found.rollout.ids
    out = policy.model(input_ids=ids, attention_mask=(ids != PAD).long(), output_hidden_states=True)
    states: Tensor = out.hidden_states[-1]
    return states


# 1, 3: the penalty


@pytest.mark.parametrize("other", [{"coefficient": 1000.0}, {"base_threshold": 0.002}, {"gate_floor": 5.0}])
def test_the_penalty_moves_no_weight_whatever_its_settings(other: dict[str, float]) -> None:
    none = released(penalty={**TIGHT, "coefficient": 0.0})
    some = released(penalty={**TIGHT, **other})
    for _ in range(3):
        quiet, loud = none.step()[0], some.step()[0]
        assert quiet["loss/penalty"] == 0.0
        assert float(loud["loss/penalty"] or 0) > 0  # a value, and no gradient: inert
        assert loud["grad/penalty"] == 0.0
        assert loud["loss/total"] == pytest.approx(float(quiet["loss/total"] or 0) + float(loud["loss/penalty"] or 0))
    assert torch.equal(weights(none), weights(some))


def test_the_other_terms_do_have_gradients() -> None:
    row = released().step()[0]
    assert all(float(row[f"grad/{name}"] or 0) > 0 for name in ("policy", "value", "entropy"))
    assert row["loss/kl"] is None


# 2: the baseline's KL


def test_the_baselines_kl_is_a_loss_term_whose_expected_gradient_is_zero_on_policy() -> None:
    arm = ReleasedPPO(config.resolve("ppo-official"))
    assert arm.names == ("policy", "value", "kl")
    logits = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([1.0, 0.5, -2.0, 0.1], dtype=torch.float64).log_softmax(-1)
    log_p = logits.log_softmax(-1)
    one = torch.ones(1, 1, dtype=torch.bool)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    expected, value = torch.zeros_like(logits), 0.0
    for token, p in enumerate(log_p.detach().exp()):
        now = log_p[token].reshape(1, 1)
        then = MiniBatch(
            one, now.detach(), reference[token].reshape(1, 1), zero, zero, zero[..., None], one, 1.0, 1.0, 1.0
        )
        term = arm.loss(then, ForwardOutput(now, None, None, zero[..., None])).terms["kl"]
        value += float(p * term.detach())
        expected += p * torch.autograd.grad(term, logits, retain_graph=True)[0]
    exact = (log_p.exp() * (log_p - reference)).sum()
    assert value == pytest.approx(0.05 * float(exact.detach()), rel=1e-12)
    assert float(expected.norm()) < 1e-16 < 0.05 * float(torch.autograd.grad(exact, logits)[0].norm())


def test_the_baselines_kl_term_is_the_mean_over_reply_tokens() -> None:
    loop = released("ppo-official", update={"epochs": 1}, **PLAIN)
    row = loop.step()[0]
    tokens = float(row["reply/length"] or 0) * 8
    assert row["loss/kl"] == pytest.approx(0.05 * float(row["kl/sampled"] or 0) * 8 / tokens, rel=1e-5)
    assert float(row["grad/kl"] or 0) > 0


# 4: the controller moves with every update


def test_the_controller_advances_twice_per_batch_with_the_same_raw_reward() -> None:
    loop = released(penalty=TIGHT, **PLAIN)
    loop.sigma0 = 7.0
    arm = loop.algorithm
    assert isinstance(arm, ReleasedSAFE)
    asked: list[float] = []
    control = arm.control_update
    arm.control_update = lambda kl: (asked.append(kl), control(kl))[1]  # type: ignore[method-assign]
    rewards, short = [], 0.0
    for _ in range(3):
        row = loop.step()[0]
        rewards += [row["reward/mean"]] * 2
        # The first update's KL is that of the sampled batch, the sampled one; the second's is what came of it.
        tokens = float(row["reply/length"] or 0) * 8
        assert asked[-2] == pytest.approx(float(row["kl/sampled"] or 0) * 8 / tokens, rel=1e-4)
        assert asked[-1] != asked[-2]
    assert list(arm.state.rewards) == rewards
    for kl in asked:  # from zero, not from the first KL
        short = 0.9 * short + 0.1 * kl
    assert row["controller/kl_short"] == pytest.approx(short, rel=1e-12)
    assert row["controller/velocity"] is None


def test_fifty_rewards_are_twenty_five_batches() -> None:
    loop = released(update={"steps": 30})
    phases = [loop.step()[0]["controller/phase"] for _ in range(25)]
    assert phases == ["warmup"] * 24 + ["plateau"]


def test_the_gate_sees_the_entropy_from_before_the_update_averaged_by_reply() -> None:
    loop, same = released(**PLAIN), released(**PLAIN)
    found = experience(same)
    entropy, mask = found.measured.entropy, found.rollout.mask
    by_reply = float((entropy.sum(-1) / mask.sum(-1)).mean())
    assert by_reply != pytest.approx(float(entropy[mask].mean()), rel=1e-3)
    assert loop.step()[0]["controller/gate"] == pytest.approx(max(0.5, 2.0 / (by_reply + 0.1)), rel=1e-6)


# 5: the target critic


def test_nan_in_the_target_critic_changes_nothing() -> None:
    plain, broken = released(), released()
    assert broken.critic.target is not None
    for parameter in broken.critic.target.parameters():
        nn.init.constant_(parameter, float("nan"))
    for _ in range(3):
        assert {k: v for k, v in plain.step()[0].items() if k.startswith(("loss/", "grad/", "critic/"))} == {
            k: v for k, v in broken.step()[0].items() if k.startswith(("loss/", "grad/", "critic/"))
        }
    assert torch.equal(weights(plain), weights(broken))
    assert all(bool(p.isnan().all()) for p in broken.critic.target.parameters())


def test_the_target_moves_with_every_update() -> None:
    loop = released(**PLAIN)
    assert loop.critic.target is not None
    online, target = next(loop.critic.online.heads.parameters()), next(loop.critic.target.heads.parameters())
    by_hand, seen = target.detach().clone(), []
    advance = loop.critic.advance_target

    def watched(after: Any = "batch") -> None:
        advance(after)
        seen.append((after, online.detach().clone()))

    loop.critic.advance_target = watched  # type: ignore[method-assign]
    loop.step()
    assert [after for after, _ in seen] == ["update", "update", "batch"]
    for _, now in seen[:2]:
        by_hand = 0.95 * by_hand + 0.05 * now
    torch.testing.assert_close(target.detach(), by_hand, rtol=1e-5, atol=1e-8)


# 6: what the value loss regresses


def test_the_soft_minimum_itself_learns_the_return_and_its_pessimism_goes() -> None:
    """Heads one apart and the return between them: regressed together, what the advantage uses is not below it."""
    returns = torch.tensor([[0.5]])
    left = {}
    for regress in ("softmin", "heads"):
        arm = ReleasedPPO(
            released(loss={"regress": regress, "value_clip": None}, penalty=None, algorithm="ppo-official").settings
        )
        heads = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
        for _ in range(2000):
            loss = value_loss(arm.values(heads), arm.values(heads.detach()), returns[..., None], clip=None, huber=0.5)
            heads.data -= 0.1 * torch.autograd.grad(loss.mean(-1).sum(), heads)[0]
        left[regress] = heads.detach()
    assert float(soft_min(left["softmin"], 0.3)) == pytest.approx(0.5, abs=1e-4)
    assert float(left["softmin"][..., 1] - left["softmin"][..., 0]) > 0.5  # the heads still disagree
    assert float(left["heads"][..., 1] - left["heads"][..., 0]) < 1e-4


def test_the_value_loss_by_hand() -> None:
    """Heads 1 and 1, old ones 0 and 0, R = 2: V = 1, V_clip = 0.2; Huber 0.5: 0.375 and 0.775; their mean, halved."""
    settings = config.resolve("safe-official")
    one = torch.ones(1, 1, dtype=torch.bool)
    zero, heads = torch.zeros(1, 1), torch.ones(1, 1, 2, dtype=torch.bfloat16)
    past = MiniBatch(one, zero, zero, zero, torch.full((1, 1), 2.0), 0 * heads, one, 1.0, 1.0, 1.0)
    terms = ReleasedSAFE(settings).loss(past, ForwardOutput(zero, zero, None, heads)).terms
    clipped = float(torch.tensor(0.2, dtype=torch.bfloat16))
    assert terms["value"].dtype == torch.float32
    assert float(terms["value"]) == pytest.approx(0.5 * (0.375 + 0.5 * (2 - clipped - 0.25)) / 2, rel=1e-6)


def test_there_is_no_bootstrapping() -> None:
    """The return is the sequence's normalised reward, whatever the critic says."""
    loop, raw = released(advantage={"gamma": 0.3, "lam": 0.1}), released("ppo-official")
    found = experience(loop)
    assert torch.equal(found.returns[:, 0], loop.moments.normalise(raw._score(raw_rollout(raw))))
    assert loop.moments.count > 8
    found = experience(raw)
    assert torch.equal(found.returns[:, 0], raw._score(found.rollout))
    assert raw.moments.count < 1


def raw_rollout(loop: Loop) -> Any:
    """Sample the batch of step 1."""
    loop.step_number = 1
    rollout = loop._sample()
    loop.step_number = 0
    return rollout


# 7: one scalar per sequence, read at the last position


def test_values_are_read_at_the_last_position_which_is_padding_where_a_row_ends_early() -> None:
    loop = released(**PLAIN)
    found = experience(loop)
    states = whole_states(loop.world.policy, found).detach()
    early = found.rollout.ids[:, -1] == PAD
    assert 0 < int(early.sum()) < 8
    assert not bool(early[found.rollout.mask.sum(-1).argmax()])  # no wider than the longest reply
    heads = loop.critic.online(states[:, -1])
    torch.testing.assert_close(found.heads[:, 0], heads.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.values[:, 0], soft_min(heads, 0.3).detach(), rtol=1e-4, atol=1e-6)
    last = found.rollout.attention.cumsum(-1).argmax(-1)
    real = soft_min(loop.critic.online(states[torch.arange(8), last]), 0.3).detach()
    assert float((real - found.values[:, 0])[early].abs().min()) > 1e-4


def test_one_advantage_per_sequence_standardised_over_the_batch() -> None:
    loop = released(**PLAIN)
    found = experience(loop)
    raw = found.returns[:, 0] - found.values[:, 0]
    expected = (raw - raw.mean()) / (raw.std() + 1e-8)
    mask = found.rollout.mask
    torch.testing.assert_close(found.advantages, torch.where(mask, expected[:, None], 0.0), rtol=1e-5, atol=1e-6)
    assert found.heads.shape == (8, 1, 2)


def test_the_policy_term_is_the_mean_over_tokens_that_are_not_padding() -> None:
    loop = released(update={"epochs": 1}, **PLAIN)
    found = experience(loop)
    tally = loop.updater.run(1, found, gradient_norms=False)
    # The ratio is 1: minus the mean advantage over tokens, long replies weighing more.
    assert tally.means()["loss/policy"] == pytest.approx(-float(found.advantages[found.rollout.mask].mean()), abs=1e-6)


def test_an_end_token_that_is_the_pad_token_is_left_out() -> None:
    rollout = tiny_rollout(tiny_policy(moved=0.3))
    ends = torch.isin(rollout.tokens, torch.tensor(STOPS)) & rollout.mask
    assert bool(ends.any())
    alike = dataclasses.replace(rollout, ids=rollout.ids.where(~torch.isin(rollout.ids, torch.tensor(STOPS)), PAD))
    width = int(rollout.mask.sum(-1).max())
    assert torch.equal(rollout.padded(PAD).mask, rollout.mask[:, :width])
    assert torch.equal(alike.padded(PAD).mask, (rollout.mask & ~ends)[:, :width])
    assert torch.equal(alike.padded(PAD).attention.bool(), alike.padded(PAD).ids != PAD)


def test_where_the_end_token_is_the_pad_token_updates_do_not_see_it() -> None:
    usual = raw_rollout(released(**PLAIN))
    policy = tiny_policy(moved=0.3)
    ended = int(usual.ended.nonzero()[0])
    policy.tokenizer.pad_token = policy.tokenizer.convert_ids_to_tokens(int(usual.tokens[ended][usual.mask[ended]][-1]))
    loop = released(policy=policy, update={"epochs": 1}, **PLAIN)
    asked: list[float] = []
    control = loop.algorithm.control_update
    loop.algorithm.control_update = lambda kl: (asked.append(kl), control(kl))[1]  # type: ignore[method-assign]
    found = experience(loop)
    kept = found.rollout.mask
    assert int(kept.sum()) < int(usual.mask.sum())
    assert torch.equal(kept, found.rollout.tokens != policy.tokenizer.pad_token_id)
    tally = loop.updater.run(1, found, gradient_norms=False)
    log_ratio = found.measured.log_probs - found.measured.reference_log_probs
    assert asked == [pytest.approx(float(log_ratio[kept].mean()), rel=1e-4)]
    assert tally.means()["loss/policy"] == pytest.approx(-float(found.advantages[kept].mean()), abs=1e-6)


def test_the_batch_is_no_wider_than_its_longest_reply() -> None:
    """The rollout keeps a position after it, where there is room; in the release there is none."""
    rollout = tiny_rollout(tiny_policy(moved=0.3))
    rows = (rollout.mask.sum(-1) < rollout.mask.shape[1]).nonzero().flatten()
    cut = {name: getattr(rollout, name)[rows] for name in ("ids", "attention", "mask", "ended")}
    short = dataclasses.replace(rollout, **cut).padded(PAD)
    longest = int(short.mask.sum(-1).max())
    assert short.mask.shape[1] == longest < rollout.mask.shape[1]
    assert torch.equal(short.ids, cut["ids"][:, : longest - rollout.mask.shape[1]])
    assert torch.equal(short.attention, cut["attention"][:, : longest - rollout.mask.shape[1]])


# 8: hidden states are not detached


@pytest.mark.parametrize("name", ["safe-official", "ppo-official"])
def test_the_value_loss_moves_the_policy(name: str) -> None:
    for detach in (False, True):
        loss = {"entropy_coefficient": 0.0, "kl_coefficient": 0.0}
        loop = released(name, critic={"detach": detach}, loss=loss, update={"weight_decay": 0.0})
        before = [p.detach().clone() for p in loop.updater.policy_parameters]
        loop.updater.run(1, without_advantage(experience(loop)), gradient_norms=False)
        same = [torch.equal(p, was) for p, was in zip(loop.updater.policy_parameters, before, strict=True)]
        assert all(same) == detach


# 9: the entropy bonus


def test_the_entropy_bonus_counts_padding() -> None:
    loop = released(update={"epochs": 1}, **PLAIN)
    found = experience(loop)
    policy, replies = loop.world.policy, found.rollout.mask.shape[1]
    log_p = (whole_states(policy, found)[:, -replies - 1 : -1] @ policy.output_weight.T).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    bonus = loop.updater.run(1, found, gradient_norms=False).means()["loss/entropy"]
    assert bonus == pytest.approx(-0.01 * float(entropy.mean()), rel=1e-5)
    assert bonus != pytest.approx(-0.01 * float(entropy[found.rollout.mask].mean()), rel=1e-3)


@pytest.mark.parametrize("microbatch", [1, 3])
def test_micro_batches_keep_the_batchs_padding(microbatch: int) -> None:
    def update(size: int | None) -> tuple[Tensor, dict[str, float]]:
        loop = released(update={"microbatch": size, "epochs": 1}, **PLAIN)
        tally = loop.updater.run(1, experience(loop), gradient_norms=False)
        owners = [*loop.updater.policy_parameters, *loop.updater.critic_parameters]
        return torch.cat([p.grad.flatten() for p in owners if p.grad is not None]), tally.means()

    (whole, expected), (parts, means) = update(None), update(microbatch)
    assert float((parts - whole).norm()) <= 1e-4 * float(whole.norm())
    assert {k: v for k, v in means.items() if k.startswith("loss/")} == pytest.approx(
        {k: v for k, v in expected.items() if k.startswith("loss/")}, rel=1e-4, abs=1e-6
    )


# 10: dropout in updates, not in rollouts


def test_dropout_parts_the_first_ratio_from_one() -> None:
    with_dropout, without = released(update={"epochs": 1}), released(update={"epochs": 1}, **PLAIN)
    rows = [loop.step()[0] for loop in (with_dropout, without)]
    assert float(rows[0]["update/approx_kl"] or 0) > 1e-4
    assert float(rows[1]["update/approx_kl"] or 0) < 1e-10
    # Sampled and measured alike: neither drops anything there.
    for key in ("kl/mean", "kl/sampled", "entropy/mean", "reward/mean", "reply/length"):
        assert rows[0][key] == rows[1][key]


def test_old_values_are_taken_under_dropout_too() -> None:
    noisy, calm = experience(released(critic=PLAIN["critic"])), experience(released(**PLAIN))
    assert float((noisy.values - calm.values).abs().min()) > 1e-6


def test_dropout_draws_from_the_seed_and_the_step_alone() -> None:
    """Not from torch's global generator, which is left as it was."""
    one, other = released(), released()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one.step()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    other.step()
    assert torch.equal(weights(one), weights(other))
    # The same policy, critic and rollout, drawn in another step or for another seed.
    found, again = experience(one), experience(other)
    assert torch.equal(found.values, again.values)
    later, elsewhere = released(), released(seed=1)
    for loop, step in ((later, 3), (elsewhere, 2)):
        loop.restore(one.state())
        loop.step_number = step
        values = loop._advantages(found.rollout, found.measured, torch.zeros(8)).values
        assert not torch.equal(values, found.values)


@pytest.mark.parametrize("name", ["safe-official", "ppo-official"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    whole, first = released(name), released(name)
    for loop in (whole, first):
        loop.step()
        loop.step()
    second = released(name, moved=0.0)
    second.restore(first.state())
    for _ in range(2):
        a, b = whole.step()[0], second.step()[0]
        assert {k: v for k, v in a.items() if not k.startswith(("time/", "speed/", "memory/"))} == {
            k: v for k, v in b.items() if not k.startswith(("time/", "speed/", "memory/"))
        }
    assert torch.equal(weights(whole), weights(second))


def test_recomputed_layers_drop_the_same_in_the_backward_pass() -> None:
    plain, saving = (
        released(policy=tiny_policy(moved=0.3, dropout=0.05, gradient_checkpointing=flag)) for flag in (False, True)
    )
    plain.step()
    saving.step()
    torch.testing.assert_close(weights(saving), weights(plain), rtol=1e-5, atol=1e-7)


# 11: precision


def test_most_of_the_critics_weights_cannot_move_in_bfloat16() -> None:
    """A step of AdamW at the released rate is 1e-5, less than half a unit in the last place from 2^-8 on.

    Weights start within +-1/sqrt(2048) at the width of Qwen2.5-3B, so 82 % of them are further out.
    """
    still = {}
    for dtype in (torch.bfloat16, torch.float32):
        generator = torch.Generator().manual_seed(0)
        heads = ValueHeads(2048, 2, mlp=True, layer_norm=True, draws=seeding.Draws("test", 0), small=False).to(dtype)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-5)
        before = [p.detach().clone() for p in heads.parameters()]
        heads(torch.randn(16, 2048, generator=generator)).float().square().mean().backward()
        optimizer.step()
        same = torch.cat([(p == was).flatten() for p, was in zip(heads.parameters(), before, strict=True)])
        still[dtype] = float(same.float().mean())
    assert still[torch.bfloat16] == pytest.approx(1 - 2**-8 * 2048**0.5, abs=2e-3)
    assert still[torch.float32] < 0.01


@pytest.mark.parametrize("name", ["safe-official", "ppo-official"])
def test_the_critic_is_kept_in_bfloat16_and_starts_as_torch_starts_it(name: str) -> None:
    critic = released(name).critic
    assert {p.dtype for p in critic.parameters()} == {torch.bfloat16}
    for layer in critic.online.heads.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for p in (layer.weight, layer.bias):
                assert 0 < float(p.detach().abs().max()) <= bound * 1.01
    if critic.target is not None:
        pairs = zip(critic.online.parameters(), critic.target.parameters(), strict=True)
        assert all(torch.equal(online, target) for online, target in pairs)


def test_old_log_probabilities_are_kept_in_the_models_precision() -> None:
    found = experience(released(policy=tiny_policy(moved=0.3, dtype=torch.bfloat16)))
    for kept in (found.measured.log_probs, found.measured.reference_log_probs):
        assert torch.equal(kept, kept.bfloat16().to(kept.dtype))


# 13: the baseline differs in everything at once


def test_the_baseline_differs_from_safe_in_everything_at_once() -> None:
    safe, ppo = config.resolve("safe-official"), config.resolve("ppo-official")
    apart = ("experiment", "description", "algorithm", "penalty")
    found = {key: values for key, *values in config.changes(ppo, safe) if not key.startswith(apart)}
    assert found == {
        "reward.normalise": [True, False],
        "update.critic_max_grad_norm": [0.5, None],
        "critic.heads": ["double", "single"],
        "critic.layer_norm": [True, False],
        "critic.target_decay": [0.95, None],
        "critic.target_follows": ["update", "batch"],
        "loss.value_coefficient": [0.5, 1.0],
        "loss.value_clip": [0.2, None],
        "loss.value_huber": [0.5, None],
        "loss.value_combine": ["mean", "max"],
        "loss.regress": ["softmin", "heads"],
        "loss.entropy_coefficient": [0.01, 0.0],
        "loss.kl_coefficient": [0.0, 0.05],
    }
    paper = config.resolve("ppo-official", preset="paper")
    assert (paper.update.critic_max_grad_norm, paper.model.lora.dropout) == (None, 0.05)
    assert released("ppo-official").step()[0]["loss/entropy"] is None


# 12: the heuristic reward, and faults


def test_the_released_safe_needs_its_controller() -> None:
    with pytest.raises(UsageError, match="safe-official needs its controller"):
        released(penalty=None)
    with pytest.raises(UsageError, match="ppo-official has no KL penalty"):
        released("ppo-official", penalty=Penalty().model_dump())
    form = {"momentum": {}, "gate": False, "pid": {"enabled": False}, "phase": {"enabled": False}}
    with pytest.raises(UsageError, match="no penalty with momentum"):
        released(penalty=form)


def test_there_are_no_token_rewards_to_whiten() -> None:
    with pytest.raises(UsageError, match="ppo-official has one reward per sequence"):
        released("ppo-official", advantage={"whiten_rewards": True})


@pytest.mark.parametrize("name", ["ppo", "safe", "ppo-official", "safe-official"])
def test_files_of_before_the_release_had_a_module_of_its_own_are_read(name: str, tmp_path: Path) -> None:
    """``critic.reads`` and ``loss.entropy_over`` were settings of every algorithm: what they said is known."""
    settings = config.resolve(name)
    older = settings.model_dump(mode="json")
    older["critic"]["reads"] = "last" if name.endswith("official") else "token"
    older["loss"]["entropy_over"] = "all" if name == "safe-official" else "reply"
    (tmp_path / "config.yaml").write_text(yaml_text.write(older), encoding="utf-8")
    assert config.load(tmp_path / "config.yaml") == settings
    older["critic"]["reads"] = "token" if name.endswith("official") else "last"
    (tmp_path / "config.yaml").write_text(yaml_text.write(older), encoding="utf-8")
    with pytest.raises(BadResource, match=r"does not know critic\.reads"):
        config.load(tmp_path / "config.yaml")
