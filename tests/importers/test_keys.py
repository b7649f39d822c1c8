"""What each trainer's log key becomes: the tables, which of them a history is from, and the numbers themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from safebench.errors import UsageError
from safebench.importers.history import History, by_step
from safebench.importers.keys import (
    GRPO,
    NAMES,
    NO_NUMBER,
    OPENRLHF,
    PPO,
    RLOO,
    TRAINERS,
    UNKNOWN,
    VERL,
    Converted,
    Key,
    Trainer,
    convert,
    recognise,
    setting,
)
from safebench.metrics import BY_KEY, MEASURED
from tests.support import foreign_logs

ALSO = {"reward/reply": "reward"}
"""Units that are ours by another name: a reply's reward is one."""


def converted(trainer: Trainer, rows: list[dict[str, Any]], **config: Any) -> Converted:
    flat = [row.get("data", row) | ({"step": row["step"]} if "step" in row else {}) for row in rows]
    return convert(by_step(History(Path("log"), flat), trainer.counters), trainer, config)


def filled(found: Converted, step: int) -> dict[str, Any]:
    return {key: value for key, value in found.rows[step].items() if value is not None}


# Tables


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_every_line_goes_to_a_column_of_ours_in_its_unit_or_says_why_not(trainer: Trainer) -> None:
    for line in trainer.keys:
        if line.ours is None:
            assert line.why, line.names
            continue
        assert line.ours in MEASURED, line
        if line.factor is None and not line.only_broken:
            assert ALSO.get(line.unit, line.unit) == BY_KEY[line.ours].unit, line
        assert not line.needs or line.why, line


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_no_estimate_of_the_kl_goes_where_the_exact_one_belongs(trainer: Trainer) -> None:
    assert not [line for line in trainer.keys if line.ours in ("kl/mean", "kl/max", "eval/kl", "update/approx_kl")]


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: trainer.name)
def test_no_line_is_hidden_behind_one_further_up(trainer: Trainer) -> None:
    for place, line in enumerate(trainer.keys):
        for name in line.names:
            if "*" not in name:
                first = next(other for other in trainer.keys if other.matches(name))
                same = first is line or (first.ours, first.names) == (line.ours, line.names)
                assert same, f"{trainer.name}: {name} of line {place} is taken by {first.names}"


@pytest.mark.parametrize(("trainer", "name"), [(PPO, "ppo"), (GRPO, "grpo"), (RLOO, "rloo")])
def test_every_key_that_trl_really_logs_is_known(trainer: Trainer, name: str) -> None:
    found = converted(trainer, foreign_logs.trl(name))
    assert not [key for key, why in found.left if why in (UNKNOWN, NO_NUMBER)]


@pytest.mark.parametrize(("trainer", "rows"), [(VERL, foreign_logs.verl(10)), (OPENRLHF, foreign_logs.openrlhf(2))])
def test_every_key_of_the_others_is_known(trainer: Trainer, rows: list[dict[str, Any]]) -> None:
    assert not [key for key, why in converted(trainer, rows).left if why in (UNKNOWN, NO_NUMBER)]


# Which trainer


@pytest.mark.parametrize(
    ("rows", "trainer"),
    [
        (foreign_logs.trl("ppo"), PPO),
        ([{f"train/{key}": value for key, value in foreign_logs.trl("ppo")[0].items()}], PPO),
        (foreign_logs.verl(1)[1:], VERL),
        (foreign_logs.openrlhf(1), OPENRLHF),
        ([{"policy_loss": 0.1, "actor_lr": 1e-6, "reward": 1.0}], OPENRLHF),
    ],
)
def test_a_history_is_told_by_its_keys(rows: list[dict[str, Any]], trainer: Trainer) -> None:
    keys = [key for row in rows for key in row.get("data", row)]
    assert recognise(keys) is trainer


def test_grpo_and_rloo_leave_the_same_keys_so_that_one_must_be_named() -> None:
    assert [set(row) for row in foreign_logs.trl("grpo")] == [set(row) for row in foreign_logs.trl("rloo")]
    keys = list(foreign_logs.trl("grpo")[0])
    for name in (None, "trl"):
        with pytest.raises(UsageError, match=r"fit trl-grpo, trl-rloo: clip_ratio/high_max, .* and \d+ more") as caught:
            recognise(keys, name)
        assert "--from trl-grpo" in str(caught.value.hint)
    assert recognise(keys, "trl-rloo") is RLOO


@pytest.mark.parametrize(
    ("keys", "name", "says"),
    [
        (["loss", "accuracy"], None, "of no trainer that is known: loss, accuracy"),
        (["_step"], None, "of no trainer that is known: none"),
        (["objective/scores", "actor/pg_loss"], None, "fit trl-ppo, verl"),
        (["objective/scores"], "verl", "none of these keys is one of verl's that convert: objective/scores"),
        (["objective/scores"], "trlx", "no trainer 'trlx'"),
    ],
)
def test_keys_of_none_or_several_are_refused_by_name(keys: list[str], name: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        recognise(keys, name)
    assert "--from" in str(caught.value.hint)


def test_the_names_are_families_and_trainers() -> None:
    assert NAMES == ("trl", "verl", "openrlhf", "trl-ppo", "trl-grpo", "trl-rloo")


@pytest.mark.parametrize(
    ("trainer", "keys", "config", "arm"),
    [
        (PPO, {"objective/kl"}, {}, "trl-ppo"),
        (GRPO, {"reward"}, {}, "grpo"),
        (VERL, {"critic/vf_loss"}, {}, "verl-ppo"),
        (VERL, {"critic/score/mean"}, {}, "verl"),
        (
            VERL,
            {"critic/score/mean"},
            {"algorithm": {"adv_estimator": "reinforce_plus_plus"}},
            "verl-reinforce-plus-plus",
        ),
        (VERL, {"critic/vf_loss"}, {"algorithm": {"adv_estimator": "gae"}}, "verl-ppo"),
        (OPENRLHF, {"critic_loss"}, {}, "openrlhf-ppo"),
        (OPENRLHF, {"policy_loss"}, {"advantage_estimator": "group_norm"}, "openrlhf-group-norm"),
    ],
)
def test_the_arm_is_ppo_only_where_that_is_known(trainer: Trainer, keys: set[str], config: Any, arm: str) -> None:
    assert trainer.arm_of(keys, config) == arm


# Numbers


def test_trl_ppo() -> None:
    logged = foreign_logs.trl("ppo")[1]
    found = converted(PPO, foreign_logs.trl("ppo"), vf_coef=0.1)
    assert filled(found, 2) == {
        "step": 2,
        "episodes": 8,
        "reward/mean": logged["objective/scores"],
        "reward/shaped": logged["objective/rlhf_reward"],
        "kl/sampled": logged["objective/kl"],
        "loss/policy": logged["loss/policy_avg"],
        "loss/value": logged["loss/value_avg"] * 0.1,
        "reply/surprisal": logged["objective/entropy"],
        "update/clip_fraction": logged["policy/clipfrac_avg"],
        "update/value_clip_fraction": logged["val/clipfrac_avg"],
        "update/learning_rate": logged["lr"],
    }
    assert isinstance(found.rows[2]["episodes"], int)
    assert [(one.ours, one.formula) for one in found.converted] == [("loss/value", "loss/value_avg · vf_coef")]
    left = dict(found.left)
    assert {"policy/entropy_avg", "policy/approxkl_avg", "val/ratio", "val/num_eos_tokens"} <= set(left)
    assert set(left) | {key for one in (*found.kept, *found.converted) for key in one.keys} | {"step"} == set(logged)


def test_trl_grpo_and_rloo_differ_in_what_a_clipped_share_is_of() -> None:
    for trainer, name in ((GRPO, "grpo"), (RLOO, "rloo")):
        logged = foreign_logs.trl(name)[2]
        found = converted(trainer, foreign_logs.trl(name))
        row = filled(found, 3)
        assert row["reply/ended"] == 1.0 - logged["completions/clipped_ratio"]
        assert row["entropy/mean"] == logged["entropy"]
        assert row["reward/std"] == logged["reward_std"]
        assert row["time/step"] == logged["step_time"]
        assert ("update/clip_fraction" in row) == (trainer is GRPO)
        assert "kl/mean" not in row and "kl/sampled" not in row
        assert "estimate" in dict(found.left)["kl"]
        assert [one.formula for one in found.converted] == ["1 − completions/clipped_ratio"]


def test_verl_sums_its_stages_and_takes_the_evaluation_out_of_the_step() -> None:
    found = converted(VERL, foreign_logs.verl(10))
    assert filled(found, 0) == {"step": 0}
    row = filled(found, 10)
    assert row["reward/mean"] == 1.1
    assert row["reward/shaped"] == pytest.approx(1.05, rel=1e-15)
    assert row["reply/length"] == 100.0
    assert row["entropy/mean"] == 2.0 + 0.1 * math.sin(10)
    assert (row["grad/norm"], row["grad/critic_norm"]) == (1.25, 3.5)
    assert (row["critic/explained_variance"], row["critic/value"]) == (0.6, 0.8)
    assert (row["time/measure"], row["time/update"], row["time/evaluate"]) == (1.75, 5.0, 7.0)
    assert (found.rows[9]["time/step"], row["time/step"]) == (20.0, 13.0)
    formulas = {one.ours: one.formula for one in found.converted}
    assert formulas["time/step"] == "timing_s/step − timing_s/testing"  # saving was never logged
    absent = {"kl/mean", "kl/sampled", "update/approx_kl", "loss/policy", "loss/value", "critic/return", "eval/reward"}
    assert not absent & set(row)


def test_openrlhf() -> None:
    assert filled(converted(OPENRLHF, foreign_logs.openrlhf(3)), 3) == {
        "step": 3,
        "reward/mean": 0.53,
        "reward/shaped": 0.43000000000000005,
        "reply/length": 203.0,
        "update/clip_fraction": 0.015625,
        "update/learning_rate": 5e-7,
    }


# Settings


@pytest.mark.parametrize(
    ("config", "taken", "assumes"),
    [({}, True, True), ({"kl_estimator": "k1"}, True, False), ({"kl_estimator": "k3"}, False, False)],
)
def test_what_depends_on_a_setting_is_taken_assumed_or_left(config: Any, taken: bool, assumes: bool) -> None:
    found = converted(PPO, foreign_logs.trl("ppo"), **config)
    assert (found.rows[1]["kl/sampled"] is not None) == taken
    said = [text for text in found.assumed if "kl_estimator" in text]
    assert said == ["kl_estimator is k1: else kl/sampled is not objective/kl"] * assumes
    assert dict(found.left).get("objective/kl", "").startswith("kl_estimator was k3") == (not taken)


def test_settings_are_found_by_dotted_name_nested_or_flat() -> None:
    assert setting({"a": {"b": None}}, "a.b") == (True, None)
    assert setting({"a.b": 3}, "a.b") == (True, 3)
    assert setting({"a": 1}, "a.b") == (False, None)
    nested = {"actor_rollout_ref": {"actor": {"loss_agg_mode": "seq-mean-token-sum"}}}
    found = converted(VERL, foreign_logs.verl(1), **nested)
    assert found.rows[1]["entropy/mean"] is None
    assert "seq-mean-token-sum" in dict(found.left)["actor/entropy"]


def test_a_loss_in_another_unit_is_left_out_but_its_nan_is_not() -> None:
    rows = foreign_logs.openrlhf(3)
    rows[1]["train/policy_loss"] = math.nan
    rows[2]["train/critic_loss"] = "Infinity"
    found = converted(OPENRLHF, rows)
    assert [found.rows[step]["loss/policy"] is None for step in (1, 2, 3)] == [True, False, True]
    assert math.isnan(float(found.rows[2]["loss/policy"] or 0.0))
    assert found.rows[3]["loss/value"] == math.inf
    assert dict(found.left)["train/policy_loss"].endswith("values that are not finite are taken over")
    assert "loss/policy" not in {one.ours for one in (*found.kept, *found.converted)}


def test_the_mean_ratio_is_no_largest_ratio_but_breaks_with_it() -> None:
    rows = foreign_logs.trl("ppo")
    rows[2]["val/ratio"] = math.inf
    found = converted(PPO, rows)
    assert [found.rows[step]["update/ratio_max"] for step in (1, 2, 3)] == [None, None, math.inf]


def test_cells_that_are_no_numbers_stay_empty_and_are_said() -> None:
    rows = foreign_logs.openrlhf(3)
    rows[0]["train/reward"] = "oops"
    rows[1]["train/reward"] = None
    found = converted(OPENRLHF, [*rows, {"train/global_step": 4, "train/generated_samples": {"_type": "table"}}])
    assert [found.rows[step]["reward/mean"] for step in (1, 2, 3)] == [None, None, 0.53]
    assert found.notices == ("train/reward is no number in 1 of 2 rows ('oops'), which stay empty",)
    assert dict(found.left)["train/generated_samples"] == NO_NUMBER


def test_a_key_nobody_knows_is_left_with_that_reason() -> None:
    found = converted(OPENRLHF, [{**foreign_logs.openrlhf(1)[0], "train/mine": 1.0}])
    assert dict(found.left)["train/mine"] == UNKNOWN


def test_of_two_keys_for_one_column_the_table_chooses() -> None:
    trainer = Trainer(
        "t",
        "t",
        "t",
        (),
        ("step",),
        (Key(("new",), "reward", "reward/mean"), Key(("old",), "reward", "reward/mean")),
        "",
    )
    found = converted(trainer, [{"step": 1, "old": 1.0, "new": 2.0}])
    assert found.rows[1]["reward/mean"] == 2.0
    assert dict(found.left) == {"old": "reward/mean is taken from new"}
