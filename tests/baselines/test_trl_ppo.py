"""TRL's own PPOTrainer as an arm: its object, our prompts and reward, and columns that mean what ours mean."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safebench import registry
from safebench.baselines import trl_ppo
from safebench.baselines.wrapped import cut_at_the_end, rollout_of
from safebench.errors import Interrupted, UsageError
from safebench.models.prompts import Prompts
from safebench.rl.advantages import gae, shift_left, token_rewards, value_mask, whiten
from safebench.rl.losses import clip_fraction, clipped_surrogate, value_clip_fraction, value_loss
from safebench.training import run
from safebench.training.distributed import Processes
from safebench.training.measure import measure
from tests.support.runs import make_parts, rows, tiny_run
from tests.support.tiny import encoded, tiny_world
from tests.support.trl_arms import END, REPLY, Seen, early_letters, ending_policy, learn, log_probs, settings, values_of


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Two steps of two epochs each."""
    return learn(settings("trl-ppo"))


def test_it_is_trls_own_object(seen: Seen) -> None:
    from trl.experimental.ppo import PPOTrainer

    assert type(seen.trainer) is PPOTrainer
    assert PPOTrainer.__module__ == "trl.experimental.ppo.ppo_trainer"
    assert PPOTrainer.train.__module__ == PPOTrainer.__module__
    assert not [name for name, value in vars(seen.trainer).items() if callable(value) and hasattr(PPOTrainer, name)]
    assert seen.trainer.model.policy is seen.world.policy.model


def test_batches_are_sampled_from_our_training_prompts(seen: Seen) -> None:
    texts = [text for rollout, _, _ in seen.batches for text in rollout.prompts]
    assert len(texts) == len(set(texts)) == 16
    assert set(texts) <= set(seen.world.prompts.train)
    for rollout, _, rewards in seen.batches:
        assert rewards.tolist() == torch.tensor(early_letters(rollout.prompts, rollout.replies)).tolist()
        assert 0 < sum(rollout.ended.tolist()) < 8
        assert rollout.mask.shape[1] == REPLY


def test_the_batch_is_measured_under_the_policy_that_sampled_it(seen: Seen) -> None:
    """TRL has its own numbers of the sampled tokens, from the scores of its generation."""
    for row, log in zip(seen.rows, seen.logs, strict=True):
        assert row["kl/sampled"] == pytest.approx(log["objective/kl"], abs=2e-5)
        assert row["reply/surprisal"] == pytest.approx(log["objective/entropy"], rel=1e-6)
        assert row["reward/mean"] == pytest.approx(log["objective/scores"], rel=1e-6)
    assert seen.rows[0]["kl/mean"] == 0
    assert float(seen.rows[1]["kl/mean"] or 0) > 1e-4


def test_counters(seen: Seen) -> None:
    lengths = [int(rollout.mask.sum()) for rollout, _, _ in seen.batches]
    assert [row["step"] for row in seen.rows] == [1, 2]
    assert [row["episodes"] for row in seen.rows] == [8, 16]
    assert [row["tokens"] for row in seen.rows] == [lengths[0], sum(lengths)]
    assert [row["reply/length"] for row in seen.rows] == [n / 8 for n in lengths]


class Epochs:
    """TRL's first step again by our functions: a run of one epoch ends with the weights that a second begins with."""

    def __init__(self, **sections: dict[str, Any]) -> None:
        update = {"steps": 1, "learning_rate": 0.05} | sections.pop("update", {})
        self.one, self.two = (
            learn(settings("trl-ppo", update={**update, "epochs": epochs}, **sections)) for epochs in (1, 2)
        )
        self.settings = self.two.learner.settings
        rollout, _, scores = self.one.batches[0]
        again, _, _ = self.two.batches[0]
        assert torch.equal(rollout.ids, again.ids)
        self.rollout, self.mask, self.positions = rollout, rollout.mask, value_mask(rollout.mask)
        start = ending_policy()
        measured = measure(start, rollout, 1.0)
        self.old_log_probs = measured.log_probs
        self.old_values = values_of(trl_ppo.value_model(start, self.settings), rollout)
        values = torch.where(self.positions, self.old_values, 0.0)
        kl = measured.log_probs - measured.reference_log_probs
        rewards = token_rewards(scores, self.mask, kl, self.settings.reward.kl_coefficient)
        advantage = self.settings.advantage
        raw = gae(rewards, values, shift_left(values), advantage.gamma, advantage.lam)
        self.returns, self.advantages = raw + values, whiten(raw, self.mask)
        self.stages = [(start, self.old_values), (self.one.world.policy, values_of(self.one.values, rollout))]

    def mean(self, tensors: list[Tensor], mask: Tensor) -> float:
        """Return the mean over the tokens of each update, then over the updates."""
        return float(torch.stack([tensor[mask].mean() for tensor in tensors]).mean())


@pytest.fixture(scope="module")
def epochs() -> Epochs:
    return Epochs()


def test_losses_are_what_our_definitions_give(epochs: Epochs) -> None:
    ratios = [(log_probs(policy, epochs.rollout) - epochs.old_log_probs).exp().detach() for policy, _ in epochs.stages]
    policy = epochs.mean([clipped_surrogate(ratio, epochs.advantages, 0.2) for ratio in ratios], epochs.mask)
    value = 0.1 * epochs.mean(
        [value_loss(values, epochs.old_values, epochs.returns) for _, values in epochs.stages], epochs.positions
    )
    (row,) = epochs.two.rows
    assert abs(policy) > 0.01
    assert row["loss/policy"] == pytest.approx(policy, rel=1e-4)
    assert row["loss/value"] == pytest.approx(value, rel=1e-5)
    assert row["loss/total"] == pytest.approx(policy + value, rel=1e-4)


def test_fractions_are_what_our_definitions_give(epochs: Epochs) -> None:
    ratios = [(log_probs(policy, epochs.rollout) - epochs.old_log_probs).exp().detach() for policy, _ in epochs.stages]
    clipped = epochs.mean([clip_fraction(ratio, epochs.advantages, 0.2) for ratio in ratios], epochs.mask)
    cut = epochs.mean(
        [value_clip_fraction(values, epochs.old_values, epochs.returns, 0.2) for _, values in epochs.stages],
        epochs.positions,
    )
    (row,) = epochs.two.rows
    assert 0 < clipped < 1
    assert 0 < cut < 1
    assert row["update/clip_fraction"] == pytest.approx(clipped, rel=1e-6)
    assert row["update/value_clip_fraction"] == pytest.approx(cut, rel=1e-6)


def test_the_shaped_reward_is_score_less_kl_and_less_the_penalty(seen: Seen) -> None:
    for row in seen.rows:
        expected = float(row["reward/mean"] or 0) - 0.05 * float(row["kl/sampled"] or 0)
        assert row["reward/shaped"] == pytest.approx(expected, abs=2e-6)
    punished = learn(settings("trl-ppo", reward={"missing_eos_penalty": 2.0}, update={"steps": 1, "epochs": 1}))
    (row,) = punished.rows
    assert row["reward/mean"] == seen.rows[0]["reward/mean"]
    unended = 1 - float(row["reply/ended"] or 0)
    assert row["reward/shaped"] == pytest.approx(float(row["reward/mean"] or 0) - 2 * unended, rel=1e-6)


FILLED = {
    "loss/policy",
    "loss/value",
    "loss/total",
    "reward/shaped",
    "update/clip_fraction",
    "update/value_clip_fraction",
    "update/learning_rate",
    "time/reward",
    "time/measure",
    "time/step",
    "speed/tokens_per_second",
    "memory/peak",
}


def test_what_trl_does_not_measure_as_we_do_stays_empty(seen: Seen) -> None:
    described = {"step", "episodes", "tokens", "prompt/truncated", "reward/mean", "reward/std"}
    for row in seen.rows:
        filled = {key for key, value in row.items() if value is not None}
        groups = {key for key in filled if key.startswith(("reply/", "kl/", "entropy/"))}
        assert filled - groups - described == FILLED


@pytest.mark.parametrize(
    ("sections", "pad_is_end"),
    [({"update": {"microbatch": 4}}, False), ({}, True)],
    ids=["accumulated", "pad is end"],
)
def test_means_over_something_else_stay_empty(sections: dict[str, Any], pad_is_end: bool) -> None:
    world = tiny_world(ending_policy(pad_is_end=pad_is_end), early_letters)
    found = learn(settings("trl-ppo", **sections), world)
    for row, log in zip(found.rows, found.logs, strict=True):
        assert {key for key in FILLED if row[key] is None} == {
            "loss/policy",
            "loss/value",
            "loss/total",
            "update/clip_fraction",
            "update/value_clip_fraction",
        }
        assert row["reward/mean"] == pytest.approx(log["objective/scores"], rel=1e-6)
        assert row["reply/ended"] == pytest.approx(
            sum(float(END in reply) for reply in _raw(found, int(row["step"] or 0) - 1)) / 8
        )


def _raw(found: Seen, batch: int) -> list[list[str]]:
    rollout = found.batches[batch][0]
    return [
        found.world.policy.tokenizer.convert_ids_to_tokens(row[kept].tolist())
        for row, kept in zip(rollout.tokens, rollout.mask, strict=True)
    ]


def test_whitened_rewards_have_no_shaped_column() -> None:
    found = learn(settings("trl-ppo", advantage={"whiten_rewards": True}, update={"steps": 1, "epochs": 1}))
    assert found.rows[0]["reward/shaped"] is None
    assert found.logs[0]["objective/rlhf_reward"]


def test_a_batch_in_chunks_is_scored_in_pieces_and_measured_as_one() -> None:
    calls: list[list[str]] = []

    def reward(prompts: list[str], replies: list[str]) -> list[float]:
        calls.append(prompts)
        return early_letters(prompts, replies)

    found = learn(settings("trl-ppo", rollout={"chunk": 3}), tiny_world(ending_policy(), reward))
    assert [len(prompts) for prompts in calls] == [3, 3, 2] * 2
    assert [len(rollout.prompts) for rollout, _, _ in found.batches] == [8, 8]
    assert [text for rollout, _, _ in found.batches for text in rollout.prompts] == [
        text for prompts in calls for text in prompts
    ]
    for row, log in zip(found.rows, found.logs, strict=True):
        assert row["reward/mean"] == pytest.approx(log["objective/scores"], rel=1e-6)
        assert row["kl/sampled"] == pytest.approx(log["objective/kl"], abs=2e-5)


def test_prompts_lose_their_beginning_but_not_for_the_reward() -> None:
    texts = [f"{x} b c d {y}" for x in "abcdefgh" for y in "ij"]
    world = tiny_world(ending_policy(), early_letters)
    world = dataclasses.replace(world, prompts=Prompts([*texts, *texts], world.prompts.heldout))
    found = learn(settings("trl-ppo", prompts={"max_tokens": 2}, update={"steps": 2, "epochs": 1}), world)
    for rollout, _, rewards in found.batches:
        assert rollout.truncated == 8
        assert set(rollout.prompts) <= set(texts)
        ends = found.world.policy.tokenizer.batch_decode(rollout.ids[:, :-REPLY])
        assert ends == [text[-3:] for text in rollout.prompts]
        assert rewards.tolist() == torch.tensor(early_letters(rollout.prompts, rollout.replies)).tolist()
    assert [row["prompt/truncated"] for row in found.rows] == [8, 8]


def test_stress_is_in_the_training_reward_alone() -> None:
    stress = {"rescale_at": 0.5, "rescale_by": 5.0, "kl_coefficient": 0.0}
    found = learn(settings("trl-ppo", reward=stress))
    first, second = found.logs
    assert first["objective/scores"] == pytest.approx(found.rows[0]["reward/mean"], rel=1e-6)
    assert second["objective/scores"] == pytest.approx(5 * float(found.rows[1]["reward/mean"] or 0), rel=1e-6)


def test_a_whole_model_learns_against_a_frozen_copy() -> None:
    world = tiny_world(ending_policy(lora=False), early_letters)
    before = world.policy.base.get_output_embeddings().weight.clone()
    found = learn(settings("trl-ppo", model={"lora": None}), world)
    assert found.rows[1]["kl/sampled"] == pytest.approx(found.logs[1]["objective/kl"], abs=2e-5)
    assert float(found.rows[1]["kl/mean"] or 0) > 1e-4
    assert not torch.equal(before, world.policy.base.get_output_embeddings().weight)


def test_the_value_model_is_the_policys_base_with_a_head_of_the_seed() -> None:
    policy, chosen = ending_policy(), settings("trl-ppo")
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.1)
    model, again = (trl_ppo.value_model(policy, chosen) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = trl_ppo.value_model(policy, chosen.model_copy(update={"seed": 1}))
    assert not torch.equal(model.score.weight, other.score.weight)
    ids = encoded(policy, ["a b c d"]).ids
    with policy.as_reference():
        expected = policy.hidden_states(ids, torch.ones_like(ids))
    found = model.model(input_ids=ids).last_hidden_state
    assert torch.equal(found, expected)
    assert all(p.requires_grad for p in model.parameters())


def test_one_seed_gives_the_same_rows_and_another_gives_others(seen: Seen) -> None:
    def told(found: Seen) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in row.items() if not key.startswith(("time/", "speed/", "memory/"))}
            for row in found.rows
        ]

    torch.rand(7)
    again = learn(settings("trl-ppo"))
    assert told(again) == told(seen)
    assert again.samples == seen.samples
    assert told(learn(settings("trl-ppo", seed=1))) != told(seen)


def test_recomputed_activations_give_the_same_update(seen: Seen) -> None:
    world = tiny_world(ending_policy(gradient_checkpointing=True), early_letters)
    found = learn(settings("trl-ppo", model={"gradient_checkpointing": True}, update={"steps": 1}), world)
    for key in ("reward/mean", "loss/policy", "loss/value"):
        assert found.rows[0][key] == pytest.approx(seen.rows[0][key], rel=1e-5)


def test_minibatches_are_trls(seen: Seen) -> None:
    chosen = settings("trl-ppo", update={"minibatches": 4})
    found = learn(chosen)
    assert found.trainer.args.mini_batch_size == 2
    assert found.rows[0]["reward/mean"] == seen.rows[0]["reward/mean"]
    assert found.rows[0]["loss/policy"] != seen.rows[0]["loss/policy"]


def test_it_stops_when_told_and_leaves_the_model_as_it_was() -> None:
    world = tiny_world(ending_policy(), early_letters)
    ends = world.policy.model.generation_config.eos_token_id
    found = learn(settings("trl-ppo", update={"steps": 5}), world, lambda row, _: row["step"] != 2)
    assert [row["step"] for row in found.rows] == [1, 2]
    assert found.learner.step_number == 2
    assert found.learner.broken is None
    assert not any(module.training for module in world.policy.model.modules())
    assert world.policy.model.generation_config.eos_token_id == ends


def test_it_says_nothing_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        learn(settings("trl-ppo"), go_on=lambda row, _: print(f"step {row['step']}") is None)
    assert [str(warning.message) for warning in warned] == []
    assert capsys.readouterr() == ("step 1\nstep 2\n", "")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "key", "flag"),
    [
        ({"update": {"max_grad_norm": 1.0}}, "update.max_grad_norm is 1.0", "update.max_grad_norm=null"),
        ({"update": {"critic_learning_rate": 0.5}}, "critic_learning_rate is 0.5", "critic_learning_rate=null"),
        ({"update": {"preview": {}}}, "update.preview", "update.preview"),
        ({"update": {"minibatches": 2, "microbatch": 2}}, "ignores update.minibatches", "update.microbatch=null"),
        ({"update": {"microbatch": 3}}, "multiple of update.microbatch (3)", "update.microbatch=null"),
        ({"critic": {"body": "shared"}}, 'critic.body is "shared"', 'critic.body="separate"'),
        ({"critic": {"heads": "double"}}, 'critic.heads is "double"', 'critic.heads="single"'),
        ({"loss": {"value_clip": None}}, "always clips the value loss", "loss.value_clip=0.2"),
        ({"loss": {"entropy_coefficient": 0.1}}, "loss.entropy_coefficient is 0.1", "loss.entropy_coefficient=0.0"),
        ({"reward": {"normalise": True}}, "reward.normalise is true", "reward.normalise=false"),
        ({"model": {"mixed_precision": True}}, "model.mixed_precision is true", "mixed_precision=false"),
        ({"advantage": {"whiten": False}}, "advantage.whiten is false", "advantage.whiten=true"),
        ({"penalty": {}}, "penalty", "penalty"),
    ],
)
def test_what_trl_would_ignore_is_refused(sections: dict[str, Any], key: str, flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        learn(settings("trl-ppo", **sections))
    assert key in str(caught.value)
    assert flag in str(caught.value.hint)


def test_all_that_is_refused_is_named_at_once_and_mended_by_the_hint() -> None:
    from safebench import config

    chosen = config.resolve("ppo", overrides=["algorithm=trl-ppo"])
    with pytest.raises(UsageError) as caught:
        registry.find("algorithms", "trl-ppo").load()(chosen, None, Processes(chosen.compute))
    hint = str(caught.value.hint)
    assert hint.count("--set") == 3
    mended = [part.rstrip(".").strip() for part in hint.removeprefix("Use ").split("--set") if part.strip()]
    mended = [part.replace('"', "") for part in mended]
    trl_ppo.refuse_unsupported(config.resolve("ppo", overrides=["algorithm=trl-ppo", *mended]), trl_ppo.LIMITS)


def test_the_experiment_is_ppo_but_for_what_trl_cannot_do() -> None:
    from safebench import config

    mine, ours = config.resolve("trl-ppo"), config.resolve("ppo")
    changed = {key for key, _, _ in config.changes(mine, ours)}
    assert changed == {
        "experiment",
        "algorithm",
        "description",
        "critic.body",
        "update.microbatch",
        "update.max_grad_norm",
        "update.critic_max_grad_norm",
    }


@pytest.mark.parametrize(
    ("ids", "pad", "expected"),
    [
        ([5, 6, 1, 0, 0], 0, [5, 6, 1]),
        ([5, 6, 7], 0, [5, 6, 7]),
        ([5, 0, 6, 1], 0, [5]),
        ([0, 5], 0, []),
        ([5, 1, 6, 1], 1, [5, 1]),
        ([1, 0], 0, [1]),
    ],
)
def test_where_a_reply_ends(ids: list[int], pad: int, expected: list[int]) -> None:
    assert cut_at_the_end(ids, 1, pad) == expected


def test_a_rollout_of_lists() -> None:
    policy = ending_policy()
    end = int(policy.tokenizer.eos_token_id)
    rollout = rollout_of(policy, encoded(policy, ["a b", "c", "d e"]), [[3, end], [4, 5, 6], []])
    assert rollout.tokens.tolist() == [[3, end, 0], [4, 5, 6], [0, 0, 0]]
    assert rollout.mask.sum(-1).tolist() == [2, 3, 0]
    assert rollout.ended.tolist() == [True, False, False]
    assert rollout.replies == [" b", " c d e", ""]
    assert rollout.attention.tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


SHORT = {"update__steps": 3, "update__epochs": 1, "evaluation__every": 2}


@pytest.fixture(scope="module")
def whole(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run of three steps."""
    outcome = run.execute(tiny_run(parts, "trl-ppo", **SHORT), tmp_path_factory.mktemp("whole"))
    assert outcome.status == "finished"
    return outcome.folder


def test_a_whole_run_is_recorded_like_any_other(whole: Path) -> None:
    table = rows(whole)
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert table["eval/reward"].notna().tolist() == [True, False, True, True]
    assert json.loads((whole / "manifest.json").read_text())["paired"] is False
    assert (whole / "adapter" / "adapter_model.safetensors").is_file()
    assert not list(whole.glob("checkpoints/*"))


def test_a_run_that_breaks_off_begins_anew(parts: Path, whole: Path, tmp_path: Path) -> None:
    chosen = tiny_run(parts, "trl-ppo", **SHORT)

    def stop(row: Any, events: list[str]) -> None:
        if row["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        run.execute(chosen, tmp_path, progress=stop)
    assert "begin anew" in str(caught.value.hint)
    (folder,) = tmp_path.glob("*/*/seed-0")
    assert rows(folder)["step"].tolist() == [0, 1]
    assert run.execute(chosen, tmp_path).status == "finished"
    assert rows(folder).equals(rows(whole))


def test_a_number_that_is_not_finite_ends_the_run_as_unstable(parts: Path, tmp_path: Path) -> None:
    outcome = run.execute(tiny_run(parts, "trl-ppo", reward__name="tiny_rewards:huge", **SHORT), tmp_path)
    assert outcome.status == "unstable"
    assert rows(outcome.folder)["step"].tolist() == [0, 1]
