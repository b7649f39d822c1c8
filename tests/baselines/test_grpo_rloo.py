"""TRL's own GRPOTrainer and RLOOTrainer as arms: their objects, our prompts and reward, columns of our meaning."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from safebench import config, registry
from safebench.baselines import groups
from safebench.errors import UsageError
from safebench.models.assemble import World, assemble
from safebench.models.libraries import quiet_libraries
from safebench.models.prompts import Prompts, encode_prompt
from safebench.models.rewards import FunctionReward
from safebench.rl.losses import clip_fraction, clipped_surrogate
from safebench.training import run
from safebench.training.distributed import Processes
from tests.support.runs import make_parts, rows, tiny_run
from tests.support.tiny import CPU, tiny_world
from tests.support.trl_arms import Seen, early_letters, ending_policy, learn, log_probs, settings

ARMS = ("grpo", "rloo")
BETA = 0.05


def chosen(arm: str, **sections: Any) -> Any:
    """Return settings of two groups of eight a step; RLOO has its KL in the reward."""
    sections["rollout"] = {"batch": 16} | sections.get("rollout", {})
    if arm == "rloo":
        sections["reward"] = {"kl_coefficient": BETA} | sections.get("reward", {})
    return settings(arm, **sections)


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    """Two steps of two epochs each, by arm."""
    return {arm: learn(chosen(arm)) for arm in ARMS}


@pytest.mark.parametrize("arm", ARMS)
def test_they_are_trls_own_objects(seen: dict[str, Seen], arm: str) -> None:
    import trl

    kind = {"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer}[arm]
    trainer = seen[arm].trainer
    assert type(trainer) is kind
    assert kind.__module__ == f"trl.trainer.{arm}_trainer"
    assert trainer.model is seen[arm].world.policy.model


def test_the_algorithms_are_at_trls_defaults(seen: dict[str, Seen]) -> None:
    """What the experiments' comments say, and what a newer TRL might change."""
    grpo, rloo = seen["grpo"].trainer.args, seen["rloo"].trainer.args
    assert (grpo.loss_type, grpo.beta, grpo.scale_rewards, grpo.importance_sampling_level) == (
        "dapo",
        0.0,
        "group",
        "token",
    )
    assert (rloo.beta, rloo.normalize_advantages, rloo.reward_clip_range) == (BETA, False, None)
    for arguments in (grpo, rloo):
        assert (arguments.num_generations, arguments.num_iterations, arguments.epsilon) == (8, 2, 0.2)
        assert (arguments.temperature, arguments.max_completion_length, arguments.learning_rate) == (1.0, 8, 0.01)


@pytest.mark.parametrize("arm", ARMS)
def test_batches_are_groups_of_replies_to_our_training_prompts(seen: dict[str, Seen], arm: str) -> None:
    found = seen[arm]
    assert len(found.batches) == 2
    for rollout, _, rewards in found.batches:
        assert set(Counter(rollout.prompts).values()) == {8}
        assert set(rollout.prompts) <= set(found.world.prompts.train)
        assert rewards.tolist() == torch.tensor(early_letters(rollout.prompts, rollout.replies)).tolist()
        assert 0 < sum(rollout.ended.tolist()) < 16
        assert rollout.ended.tolist() == [
            row[n - 1] == found.world.policy.tokenizer.eos_token_id
            for row, n in zip(rollout.tokens.tolist(), rollout.mask.sum(-1).tolist(), strict=True)
        ]


@pytest.mark.parametrize("arm", ARMS)
def test_the_batch_is_described_as_trl_saw_it(seen: dict[str, Seen], arm: str) -> None:
    found = seen[arm]
    for step, row in enumerate(found.rows):
        log = found.logs[2 * step]
        assert row["reward/mean"] == pytest.approx(log["reward"], rel=1e-6)
        assert row["reply/length"] == log["completions/mean_length"]
        assert row["reply/ended"] == pytest.approx(1 - log["completions/clipped_ratio"], abs=1e-6)
        # The first update's entropy is that of the sampling policy.
        assert row["entropy/mean"] == pytest.approx(log["entropy"], rel=1e-5)
    assert [row["step"] for row in found.rows] == [1, 2]
    assert [row["episodes"] for row in found.rows] == [16, 32]
    assert found.rows[0]["kl/mean"] == 0
    assert float(found.rows[1]["kl/mean"] or 0) > 1e-5


def advantages(arm: str, rewards: Tensor) -> Tensor:
    """Return each reply's: GRPO's reward standardised in its group; RLOO's less the mean of the others."""
    grouped = rewards.view(-1, 8)
    if arm == "grpo":
        return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).view(-1)
    return (grouped - (grouped.sum(1, keepdim=True) - grouped) / 7).view(-1)


class Epochs:
    """TRL's first step again by our functions: a run of one epoch ends with the weights that a second begins with."""

    def __init__(self, arm: str) -> None:
        update = {"steps": 1, "learning_rate": 0.05, "max_grad_norm": 0.1}
        self.one, self.two = (learn(chosen(arm, update={**update, "epochs": epochs})) for epochs in (1, 2))
        self.rollout, self.measured, rewards = self.one.batches[0]
        assert torch.equal(self.rollout.ids, self.two.batches[0][0].ids)
        self.advantages = advantages(arm, rewards)
        self.policies = [ending_policy(), self.one.world.policy]
        self.row = self.two.rows[0]

    def ratios(self) -> list[Tensor]:
        """Return the ratio of each reply token under the policy before each epoch, with gradient."""
        return [(log_probs(policy, self.rollout) - self.measured.log_probs).exp() for policy in self.policies]


def gradient_norm(loss: Tensor, epochs: Epochs, epoch: int) -> float:
    """Return the norm of a loss's gradient in the adapter."""
    gradients = torch.autograd.grad(loss, list(epochs.policies[epoch].trainable().values()))
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def test_grpos_columns_are_what_our_definitions_give() -> None:
    epochs = Epochs("grpo")
    mask = epochs.rollout.mask
    spread = epochs.advantages[:, None].expand(mask.shape)
    losses = [clipped_surrogate(ratio, spread, 0.2)[mask].mean() for ratio in epochs.ratios()]
    norms = [gradient_norm(loss, epochs, epoch) for epoch, loss in enumerate(losses)]
    clipped = [float(clip_fraction(ratio.detach(), spread, 0.2)[mask].mean()) for ratio in epochs.ratios()]
    assert max(norms) > 0.1, "clipping must have something to do"
    assert sum(clipped) > 0
    loss = sum(float(loss.detach()) for loss in losses) / 2
    assert epochs.row["loss/policy"] == epochs.row["loss/total"] == pytest.approx(loss, rel=1e-4)
    assert epochs.row["grad/norm"] == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert epochs.row["update/clip_fraction"] == pytest.approx(sum(clipped) / 2, rel=1e-6)


def test_rloos_columns_are_what_our_definitions_give() -> None:
    epochs = Epochs("rloo")
    ones = [ratio.log().where(epochs.rollout.mask, 0.0).sum(-1).exp() for ratio in epochs.ratios()]
    losses = [clipped_surrogate(ratio, epochs.advantages, 0.2).mean() for ratio in ones]
    norms = [gradient_norm(loss, epochs, epoch) for epoch, loss in enumerate(losses)]
    loss = sum(float(loss.detach()) for loss in losses) / 2
    assert epochs.row["loss/total"] == pytest.approx(loss, rel=1e-4)
    assert epochs.row["grad/norm"] == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert epochs.row["loss/policy"] is None
    assert epochs.row["update/clip_fraction"] is None


def test_the_shaped_reward_has_rloos_kl_taken_off(seen: dict[str, Seen]) -> None:
    for row in seen["grpo"].rows:
        assert row["reward/shaped"] == pytest.approx(row["reward/mean"], rel=1e-6)
    for (rollout, measured, rewards), row in zip(seen["rloo"].batches, seen["rloo"].rows, strict=True):
        kl = torch.where(rollout.mask, measured.log_probs - measured.reference_log_probs, 0.0).sum(-1)
        assert row["reward/shaped"] == pytest.approx(float((rewards - BETA * kl).mean()), rel=1e-5)
    assert seen["rloo"].rows[1]["reward/shaped"] != seen["rloo"].rows[1]["reward/mean"]


SHARED = {
    "loss/total",
    "grad/norm",
    "reward/shaped",
    "update/learning_rate",
    "time/reward",
    "time/measure",
    "time/step",
    "speed/tokens_per_second",
    "memory/peak",
}


@pytest.mark.parametrize(("arm", "own"), [("grpo", {"loss/policy", "update/clip_fraction"}), ("rloo", set())])
def test_what_trl_does_not_measure_as_we_do_stays_empty(seen: dict[str, Seen], arm: str, own: set[str]) -> None:
    described = {"step", "episodes", "tokens", "prompt/truncated", "reward/mean", "reward/std"}
    for row in seen[arm].rows:
        filled = {key for key, value in row.items() if value is not None}
        groups = {key for key in filled if key.startswith(("reply/", "kl/", "entropy/"))}
        assert filled - groups - described == SHARED | own


@pytest.mark.parametrize("sizes", [{"microbatch": 4}, {"minibatches": 2}, {"minibatches": 2, "microbatch": 4}])
def test_means_over_something_else_stay_empty(sizes: dict[str, int]) -> None:
    found = learn(chosen("grpo", update={"epochs": 1, "steps": 1, **sizes}))
    (row,) = found.rows
    assert len(found.logs) >= sizes.get("minibatches", 1)
    assert (row["loss/policy"] is None) is ("minibatches" in sizes)
    assert (row["update/clip_fraction"] is None) is ("microbatch" in sizes)


@pytest.mark.parametrize("arm", ARMS)
def test_micro_batches_give_the_same_update(seen: dict[str, Seen], arm: str) -> None:
    """DAPO counts the tokens of the whole batch, RLOO takes means over replies: both add up."""
    found = learn(chosen(arm, update={"microbatch": 4}))
    assert [row["episodes"] for row in found.rows] == [16, 32]
    for key, closeness in (("reward/mean", 1e-6), ("loss/total", 1e-3), ("grad/norm", 1e-3)):
        assert found.rows[0][key] == pytest.approx(seen[arm].rows[0][key], rel=closeness)


@pytest.mark.parametrize("arm", ARMS)
def test_one_seed_gives_the_same_rows_and_another_gives_others(seen: dict[str, Seen], arm: str) -> None:
    def told(found: Seen) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in row.items() if not key.startswith(("time/", "speed/", "memory/"))}
            for row in found.rows
        ]

    torch.rand(7)
    again = learn(chosen(arm))
    assert told(again) == told(seen[arm])
    assert again.samples == seen[arm].samples
    assert told(learn(chosen(arm, seed=1)))[0]["reward/mean"] != seen[arm].rows[0]["reward/mean"]


@pytest.mark.parametrize("arm", ARMS)
def test_recomputed_activations_give_the_same_update(seen: dict[str, Seen], arm: str) -> None:
    world = tiny_world(ending_policy(gradient_checkpointing=True), early_letters)
    found = learn(chosen(arm, model={"gradient_checkpointing": True}, update={"steps": 1}), world)
    for key in ("reward/mean", "loss/total", "grad/norm"):
        assert found.rows[0][key] == pytest.approx(seen[arm].rows[0][key], rel=1e-4)


def test_stress_is_in_the_training_reward_alone() -> None:
    found = learn(chosen("grpo", reward={"rescale_at": 0.5, "rescale_by": 5.0}))
    assert found.logs[0]["reward"] == pytest.approx(found.rows[0]["reward/mean"], rel=1e-6)
    assert found.logs[2]["reward"] == pytest.approx(5 * float(found.rows[1]["reward/mean"] or 0), rel=1e-6)


def test_a_linear_schedule_is_trls_own_per_update() -> None:
    found = learn(chosen("grpo", update={"schedule": "linear"}))
    assert [log["learning_rate"] for log in found.logs[:4]] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [row["update/learning_rate"] for row in found.rows] == pytest.approx([0.01, 0.005])


@pytest.mark.parametrize("arm", ARMS)
def test_the_model_is_left_as_it_was(seen: dict[str, Seen], arm: str) -> None:
    policy = seen[arm].world.policy
    assert list(policy.model.peft_config) == ["default"]
    assert not any(module.training for module in policy.model.modules())
    assert not [name for name, _ in policy.model.named_parameters() if ".ref." in name]
    assert len(policy.trainable()) == len(ending_policy().trainable())


def test_rloos_reference_is_the_base_though_trl_copies_the_adapter(seen: dict[str, Seen]) -> None:
    """TRL keeps a copy of the fresh adapter, which adds nothing: the same reference as ours."""
    found = seen["rloo"]
    rollout, measured, _ = found.batches[1]
    start = ending_policy()
    assert torch.allclose(log_probs(start, rollout), measured.reference_log_probs, atol=1e-6)
    mean = float((measured.log_probs - measured.reference_log_probs)[rollout.mask].mean())
    assert found.logs[2]["kl"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("arm", ARMS)
def test_it_says_nothing_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    arm: str,
) -> None:
    from trl.trainer import base_trainer

    pings: list[bool] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(
        base_trainer, "send_telemetry", lambda **_: pings.append(not constants.HF_HUB_DISABLE_TELEMETRY)
    )
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        learn(chosen(arm), go_on=lambda row, _: print(f"step {row['step']}") is None)
    assert [str(warning.message) for warning in warned] == []
    assert capsys.readouterr() == ("step 1\nstep 2\n", "")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert pings == [False], "TRL's constructor asks, and is told to send nothing"
    assert constants.HF_HUB_DISABLE_TELEMETRY is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arm", ARMS)
def test_it_stops_when_told(arm: str) -> None:
    found = learn(chosen(arm, update={"steps": 5}), go_on=lambda row, _: row["step"] != 2)
    assert [row["step"] for row in found.rows] == [1, 2]
    assert found.learner.broken is None


def capitals(prompts: list[str], replies: list[str]) -> list[float]:
    """Count capital letters."""
    return [float(sum(letter.isupper() for letter in reply)) for reply in replies]


@pytest.mark.parametrize("arm", ARMS)
def test_a_whole_model_learns(parts: Path, arm: str) -> None:
    """RLOO loads its reference from where the model lies."""
    given = tiny_run(parts, arm, model__lora="null", update__steps=2, update__epochs=1)
    with quiet_libraries():
        world = dataclasses.replace(assemble(given, CPU), reward=FunctionReward("capitals", capitals))
    before = world.policy.base.get_output_embeddings().weight.clone()
    found = learn(given, world)
    assert not torch.equal(before, world.policy.base.get_output_embeddings().weight)
    if arm == "rloo":
        rollout, measured, _ = found.batches[1]
        mean = float((measured.log_probs - measured.reference_log_probs)[rollout.mask].mean())
        assert abs(mean) > 1e-4
        assert found.logs[1]["kl"] == pytest.approx(mean, abs=1e-6)


@pytest.fixture(scope="module")
def embedded() -> World:
    with quiet_libraries():
        return assemble(config.resolve("grpo"), CPU)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("limit", [24, 6])
def test_templated_prompts_are_encoded_and_cut_as_the_loop_does(
    embedded: World, tmp_path: Path, arm: str, limit: int
) -> None:
    given = config.resolve(arm, overrides=[f"prompts.max_tokens={limit}"])
    learner = registry.find("algorithms", arm).load()(given, embedded, Processes(given.compute))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = learner.method.trainer(learner, str(tmp_path))
    examples = trainer.train_dataset[:200]
    found = trainer._tokenize_prompts(examples["prompt"])[0]
    tokenizer = embedded.policy.tokenizer
    expected = [encode_prompt(tokenizer, embedded.prompts.train[row]) for row in examples["row"]]
    assert any(len(ids) > 6 for ids in expected)
    assert found == [ids[-limit:] for ids in expected]
    assert tokenizer.truncation_side == "right", "the world's own tokenizer stays as it is"
    for name in set(embedded.policy.model.peft_config) - {"default"}:
        embedded.policy.model.delete_adapter(name)


def test_without_a_template_prompts_cannot_be_cut() -> None:
    world = tiny_world(ending_policy(), early_letters)
    world = dataclasses.replace(world, prompts=Prompts([*world.prompts.train, "a b c d"], world.prompts.heldout))
    with pytest.raises(UsageError) as caught:
        learn(chosen("grpo", prompts={"max_tokens": 3}), world)
    assert "the longest has 4 tokens" in str(caught.value)
    assert "prompts.max_tokens=4" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("arm", "sections", "key", "flag"),
    [
        ("grpo", {"rollout": {"batch": 12}}, "whole groups of 8", "rollout.batch=8"),
        ("rloo", {"update": {"microbatch": 5}}, "micro-batches (5)", "update.microbatch=null"),
        ("grpo", {"reward": {"kl_coefficient": 0.1}}, "reward.kl_coefficient is 0.1", "kl_coefficient=0.0"),
        ("rloo", {"reward": {"missing_eos_penalty": 1.0}}, "missing_eos_penalty is 1.0", "missing_eos_penalty=0.0"),
        ("grpo", {"critic": {"heads": "double"}}, 'critic.heads is "double"', 'critic.heads="single"'),
        ("rloo", {"advantage": {"lam": 0.5}}, "advantage.lam is 0.5", "advantage.lam=0.95"),
        ("grpo", {"rollout": {"chunk": 4}}, "rollout.chunk is 4", "rollout.chunk=null"),
        ("grpo", {"penalty": {}}, "penalty", "penalty"),
        ("rloo", {"model": {"lora": None, "random_weights": True}}, "random weights lie nowhere", "lora.rank=8"),
    ],
)
def test_what_trl_would_ignore_is_refused(arm: str, sections: dict[str, Any], key: str, flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        learn(chosen(arm, **sections))
    assert key in str(caught.value)
    assert flag in str(caught.value.hint)


@pytest.mark.parametrize("arm", ARMS)
def test_the_experiments_have_ppos_sizes(arm: str) -> None:
    ours = config.resolve("ppo")
    changed = {key for key, _, _ in config.changes(config.resolve(arm), ours)}
    same = {"experiment", "algorithm", "description", "update.microbatch"}
    assert changed == same | ({"reward.kl_coefficient"} if arm == "grpo" else set())
    assert ours.rollout.batch % groups.GROUP == 0


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("arm", ARMS)
def test_a_whole_run_is_launched_and_recorded_like_any_other(parts: Path, tmp_path: Path, arm: str) -> None:
    outcome = run.execute(tiny_run(parts, arm, update__steps=3, evaluation__every=2), tmp_path)
    assert outcome.status == "finished"
    table = rows(outcome.folder)
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert table["eval/reward"].notna().tolist() == [True, False, True, True]
    assert json.loads((outcome.folder / "manifest.json").read_text())["paired"] is False
    assert {path.name for path in (outcome.folder / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    assert not (outcome.folder / "adapter" / "ref").exists()


def test_a_number_that_is_not_finite_ends_the_run_as_unstable(parts: Path, tmp_path: Path) -> None:
    outcome = run.execute(tiny_run(parts, "rloo", reward__name="tiny_rewards:huge", update__steps=3), tmp_path)
    assert outcome.status == "unstable"
