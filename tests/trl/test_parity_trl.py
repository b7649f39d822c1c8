"""TRL 1.12.0's PPOTrainer and our loop, side by side from the same weights on the same sampled tokens.

Tolerances are those of float32 rounding: ‖a - b‖ <= 1e-5 ‖b‖ per tensor and batch, 1e-4 for weights: of a gradient
near zero Adam makes a step of nearly a whole learning rate, in the direction of its rounding.
In float64 TRL still keeps the log-probabilities of its sampling in float32, so what follows from them agrees to
2^-24 = 6e-8 times a small factor, and what does not, to float64.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safebench.models.generation import sample
from safebench.training.measure import measure
from tests.support.parity_ours import Step, rollout, run_ours, start_policy
from tests.support.parity_trl import PENALTY, REPLY, TEMPERATURE, Case, Record, Update, parts, run_trl
from tests.support.tiny import END, PAD, draws, encoded, tiny_tokenizer

CASES = {
    "whole": Case(missing_eos_penalty=PENALTY),
    "whole-k3-two": Case(minibatches=2, estimator="k3"),
    "whole-whitened-four": Case(minibatches=4, batch=32, whiten_rewards=True, missing_eos_penalty=PENALTY),
    "lora": Case(lora=True, learning_rate=1e-2, estimator="k3"),
    "lora-whitened-two": Case(lora=True, learning_rate=1e-2, minibatches=2, batch=16, whiten_rewards=True),
    "lora-four": Case(lora=True, learning_rate=1e-2, minibatches=4, missing_eos_penalty=PENALTY),
    "whole-k3-four-double": Case(minibatches=4, estimator="k3", missing_eos_penalty=PENALTY, dtype=torch.float64),
    "lora-two-double": Case(lora=True, learning_rate=1e-2, minibatches=2, dtype=torch.float64),
}
SINGLE = [name for name, case in CASES.items() if case.dtype == torch.float32]
DOUBLE = [name for name in CASES if name not in SINGLE]


@functools.cache
def both(case: Case) -> tuple[Record, list[Step]]:
    """Run both trainers."""
    with tempfile.TemporaryDirectory() as folder:
        record = run_trl(case, Path(folder))
    return record, run_ours(record)


def pairs(update: Update, step: Step) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair each quantity of a batch: ours, TRL's."""
    theirs, ours, mask = update.tensors, step.experience, step.experience.rollout.mask
    losses = [torch.tensor(rows, dtype=torch.float64) for rows in (step.losses, update.losses)]
    return {
        "log_probs": (ours.measured.log_probs[mask], theirs["logprobs"][mask]),
        "reference": (ours.measured.reference_log_probs[mask], theirs["ref_logprobs"][mask]),
        "rewards": (ours.shaped, theirs["rewards"]),
        "values": (ours.values, theirs["values"]),
        "advantages": (ours.advantages, theirs["advantages"]),
        "returns": (ours.returns, theirs["returns"]),
        "losses": (losses[0], losses[1]),
    }


def distance(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ / ‖b‖."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def apart(record: Record, steps: list[Step], bounds: dict[str, float], weights: float) -> list[str]:
    """Name what is farther apart than its bound: 1e-5, where ``bounds`` has none, and ``weights`` after each batch."""
    found = []
    for number, (update, step) in enumerate(zip(record.updates, steps, strict=True)):
        for name, (a, b) in pairs(update, step).items():
            if not distance(a, b) <= bounds.get(name, 1e-5):
                found.append(f"batch {number}: {name} by {distance(a, b):.1e}")
        assert step.weights.keys() == update.weights.keys()
        for name, b in update.weights.items():
            if not distance(step.weights[name], b) <= weights:
                found.append(f"batch {number}: weights {name} by {distance(step.weights[name], b):.1e}")
    return found


@pytest.mark.parametrize("name", SINGLE)
def test_our_ppo_is_trls_to_float32_rounding(name: str) -> None:
    record, steps = both(CASES[name])
    assert apart(record, steps, {}, 1e-4) == []


@pytest.mark.parametrize("name", DOUBLE)
def test_in_float64_what_is_left_is_the_float32_of_trls_sampled_log_probabilities(name: str) -> None:
    record, steps = both(CASES[name])
    exact = {"reference": 1e-14, "log_probs": 5e-7, "advantages": 5e-7}
    after = {"rewards": 1e-7, "values": 1e-7, "returns": 1e-7, "losses": 1e-7}
    assert apart(record, steps, exact | after, 2e-6) == []
    assert all(update.tensors["logprobs"].dtype == torch.float32 for update in record.updates)
    for update, step in zip(record.updates, steps, strict=True):
        ours, theirs = (torch.tensor(rows, dtype=torch.float64).T for rows in (step.losses, update.losses))
        assert distance(ours[0], theirs[0]) < 5e-6  # the policy's: a mean of numbers near 1 that nearly cancel
        assert distance(ours[1], theirs[1]) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_what_the_comparison_rests_on(name: str) -> None:
    """Lengths, order and weights: that the cases have in them what they are there for."""
    record, steps = both(CASES[name])
    assert len(record.updates) == 5
    lengths = torch.cat([step.experience.rollout.mask.sum(-1) for step in steps])
    prompts = torch.cat([(update.queries != PAD).sum(-1) for update in record.updates])
    assert {1, REPLY} < set(lengths.tolist()), "replies that end early, and that fill their length"
    assert prompts.min() < prompts.max()
    for update, step in zip(record.updates, steps, strict=True):
        assert torch.equal(step.experience.rollout.mask, ~update.tensors["padding_mask"])
        penalty = CASES[name].missing_eos_penalty or 0.0
        assert torch.allclose(
            update.tensors["scores"], update.raw_scores - penalty * ~step.experience.rollout.ended, rtol=1e-6
        )
    moved = [distance(record.updates[-1].weights[key], start) for key, start in record.start.items() if start.any()]
    assert min(moved) > 1e-4, "the weights have moved by more than they may differ"
    for clipped in ("update/clip_fraction", "update/value_clip_fraction"):
        assert any(float(step.row[clipped] or 0) > 0 for step in steps), clipped


@pytest.mark.parametrize("name", [*SINGLE, *DOUBLE])
def test_the_first_kl_is_rounding_noise_in_trl_and_zero_in_ours(name: str) -> None:
    """Policy and reference are one: KL 0.

    TRL takes the two log-probabilities by different routes, token by token with a cache and all at once. A
    log-probability is the difference of two numbers no larger than the largest logit, ‖w‖ ‖h‖ / T with ‖h‖ = 4 after
    a root-mean-square norm of width 16; each has a relative error of a few 2^-24, and so has what led to it.
    """
    case = CASES[name]
    record, steps = both(case)
    weight = parts(case.dtype, case.likely).policy.lm_head.weight.detach()
    largest = float(weight.norm(dim=-1).max()) * 4 / TEMPERATURE
    bound = 2**-24 * largest * 2
    mask = steps[0].experience.rollout.mask
    theirs = record.updates[0].tensors
    assert (theirs["logprobs"] - theirs["ref_logprobs"])[mask].abs().max() <= bound
    assert 0 < bound < 1e-4
    measured = steps[0].experience.measured
    assert torch.equal(measured.log_probs, measured.reference_log_probs)
    assert steps[0].row["kl/sampled"] == 0.0


@pytest.mark.parametrize(
    "sections",
    [
        {"advantage": {"lam": 0.949}},
        {"advantage": {"gamma": 0.991}},
        {"reward": {"kl_estimator": "k1"}},
        {"reward": {"kl_coefficient": 0.052}},
        {"reward": {"missing_eos_penalty": 0.01}},
        {"loss": {"clip": 0.05}},
        {"loss": {"value_clip": 0.1}},
        {"loss": {"value_coefficient": 0.101}},
        {"update": {"schedule": "constant"}},
        {"update": {"learning_rate": 1.01e-2}},
        {"update": {"max_grad_norm": 1.0}},
        {"rollout": {"temperature": 0.701}},
    ],
    ids=str,
)
def test_a_small_difference_shows(sections: dict[str, dict[str, object]]) -> None:
    """The tolerances can tell: one setting a little off, and something is apart."""
    record, _ = both(CASES["lora"])
    assert apart(record, run_ours(record, **sections), {}, 1e-4) != []


def test_trl_divides_by_a_temperature_a_little_larger_than_the_one_asked_for() -> None:
    record, steps = both(CASES["lora-two-double"])
    update = record.updates[0]
    policy = start_policy(record, parts(torch.float64, record.case.likely).policy)
    ours = measure(policy, rollout(update), TEMPERATURE)
    mask, theirs = rollout(update).mask, update.tensors["ref_logprobs"]
    assert distance(steps[0].experience.measured.reference_log_probs[mask], theirs[mask]) < 1e-14  # at T + 1e-7
    assert 1e-8 < distance(ours.reference_log_probs[mask], theirs[mask]) < 1e-6  # at T, off by 1e-7 / T


def test_in_trl_where_the_score_falls_depends_on_the_other_replies_of_the_batch() -> None:
    """The longest reply of a batch that ends early has its score on its last token, the others one position later.

    Ours always has the position after the end.
    """
    record, _ = both(Case(likely=((END, 12.5),), steps=1, epochs=1, batch=8))
    update = record.updates[0]
    lengths = (~update.tensors["padding_mask"]).sum(-1)
    width = update.responses.shape[1]
    longest, shorter = lengths == width, lengths < width
    assert width < REPLY
    assert longest.any()
    assert shorter.any()
    placed = update.tensors["rewards"] + 0.05 * update.tensors["kl"]
    assert torch.allclose(placed[longest, width - 1], update.raw_scores[longest], atol=1e-6)
    assert torch.allclose(placed[shorter, lengths[shorter]], update.raw_scores[shorter], atol=1e-6)
    wide = dataclasses.replace(update, responses=torch.nn.functional.pad(update.responses, (0, 1), value=PAD))
    ours = run_ours(dataclasses.replace(record, updates=[wide]))[0].experience
    assert torch.allclose(ours.shaped[torch.arange(8), lengths], update.raw_scores, atol=1e-6)


def test_with_accumulation_trl_weighs_tokens_by_the_micro_batch_they_are_in_ours_all_alike() -> None:
    """TRL's loss of a batch is the mean of its micro-batches' means."""
    record, steps = both(Case(accumulation=3, steps=1, epochs=1))
    losses = torch.tensor(record.updates[0].losses)
    ours = torch.tensor(steps[0].losses[0])
    rows = torch.tensor(record.updates[0].orders[0]).reshape(3, -1)
    for of_what, name in enumerate(("mask", "positions")):
        kept = steps[0].experience.rollout.mask if name == "mask" else steps[0].experience.positions
        counts = kept.sum(-1)[rows].sum(-1)
        assert torch.allclose((losses[:, of_what] * counts).sum() / counts.sum(), ours[of_what], atol=1e-6)
        assert not torch.allclose(losses[:, of_what].mean(), ours[of_what], atol=1e-2)


def test_trl_takes_a_sampled_padding_token_for_the_end_ours_for_a_token() -> None:
    case = Case(likely=((PAD, 8.0),), steps=1, epochs=1, batch=8)
    with tempfile.TemporaryDirectory() as folder:
        record = run_trl(case, Path(folder))
    update = record.updates[0]
    row, place = next((r, p) for r, p in (update.responses[:, :-1] == PAD).nonzero().tolist())
    assert (update.responses[row, place:] != PAD).any(), "the policy went on after it"
    assert bool(update.tensors["padding_mask"][row, place:].all())
    policy = start_policy(record, parts(likely=case.likely).policy)
    sampled = sample(policy, encoded(policy), draws(8, REPLY), TEMPERATURE)
    assert bool((sampled.tokens[sampled.mask] == PAD).any())
    assert tiny_tokenizer().pad_token_id == PAD

