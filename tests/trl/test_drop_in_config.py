"""The drop-in's configuration: TRL's fields and defaults, all of which do something or are refused or told of."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from safebench import config
from safebench.config.schema import Settings
from safebench.errors import UsageError
from safebench.trl import ModelConfig, PPOConfig, SAFEConfig, ScriptArguments, get_peft_config
from safebench.trl.config import (
    ACTED_ON,
    FILLED,
    MAPPED,
    REFUSED,
    SCRIPT,
    WITHOUT_EFFECT,
    check_fields,
    fill_sizes,
    settings_of,
)
from tests.support.drop_in import arguments, trainer


def trl(name: str) -> Any:
    """A class of TRL's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl
        from trl.experimental import ppo

        return getattr(ppo, name, None) or getattr(trl, name)


def shape(kind: Any) -> dict[str, tuple[Any, Any]]:
    """Type and default of each field; mappings whatever they hold."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: (str(hints[field.name]).replace("dict[str, typing.Any]", "dict"), field.default)
        for field in dataclasses.fields(kind)
    }


@pytest.mark.parametrize("ours", [PPOConfig, ScriptArguments, ModelConfig])
def test_fields_types_and_defaults_are_trls(ours: type) -> None:
    theirs, mine = shape(trl(ours.__name__)), shape(ours)
    assert {name: mine[name] for name in theirs} == {
        name: (kind.replace("<class 'dict'>", "dict"), default) for name, (kind, default) in theirs.items()
    }
    assert set(mine) - set(theirs) == ({"trust_remote_code"} if ours is ModelConfig else set())


def test_every_field_of_trl_has_exactly_one_fate() -> None:
    tables = [MAPPED, ACTED_ON, FILLED, SCRIPT, REFUSED, WITHOUT_EFFECT]
    for field in dataclasses.fields(trl("PPOConfig")):
        assert sum(field.name in table for table in tables) == 1, field.name


# What each mapped field is set to, and the settings that then differ from those of the defaults.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "per_device_train_batch_size": (2, {"update.microbatch": 2, "rollout.batch": 2, "update.steps": 8}),
    "gradient_accumulation_steps": (2, {"rollout.batch": 8, "update.steps": 2}),
    "num_train_epochs": (2.0, {"update.steps": 8}),
    "total_episodes": (20, {"update.steps": 5}),
    "max_steps": (3, {"update.steps": 3}),
    "learning_rate": (1e-4, {"update.learning_rate": 1e-4}),
    "max_grad_norm": (0.5, {"update.max_grad_norm": 0.5, "update.critic_max_grad_norm": 0.5}),
    "bf16": (True, {"model.mixed_precision": True}),
    "gradient_checkpointing": (True, {"model.gradient_checkpointing": True}),
    "activation_checkpointing": (True, {"model.gradient_checkpointing": True}),
    "seed": (9, {"seed": 9}),
    "use_cpu": (False, {"compute.device": "auto"}),
    "num_mini_batches": (2, {"update.minibatches": 2}),
    "num_ppo_epochs": (3, {"update.epochs": 3}),
    "local_rollout_forward_batch_size": (3, {"rollout.chunk": 3}),
    "response_length": (5, {"rollout.reply_tokens": 5}),
    "temperature": (0.5, {"rollout.temperature": 0.5}),
    "missing_eos_penalty": (1.5, {"reward.missing_eos_penalty": 1.5}),
    "whiten_rewards": (True, {"advantage.whiten_rewards": True}),
    "kl_coef": (0.2, {"reward.kl_coefficient": 0.2}),
    "kl_estimator": ("k3", {"reward.kl_estimator": "k3"}),
    "cliprange": (0.1, {"loss.clip": 0.1}),
    "vf_coef": (0.3, {"loss.value_coefficient": 0.3}),
    "cliprange_value": (0.4, {"loss.value_clip": 0.4}),
    "gamma": (0.9, {"advantage.gamma": 0.9}),
    "lam": (0.8, {"advantage.lam": 0.8}),
}


def settled(folder: Path, **given: Any) -> Settings:
    args = arguments(folder, **{"total_episodes": None, "num_train_epochs": 1.0, **given})
    fill_sizes(args, 16, 1)
    return settings_of(args, own_value_model=False, stops=True)


@pytest.mark.parametrize("name", CHANGES)
def test_a_mapped_field_changes_its_settings_and_no_others(name: str, tmp_path: Path) -> None:
    value, expected = CHANGES[name]
    before, after = settled(tmp_path), settled(tmp_path, **{name: value})
    assert {key: new for key, _, new in config.changes(after, before)} == expected


def test_no_mapped_field_is_left_untested() -> None:
    assert set(CHANGES) == set(MAPPED)


def test_no_clipping_at_zero(tmp_path: Path) -> None:
    assert settled(tmp_path, max_grad_norm=0.0).update.max_grad_norm is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    setattr(args, name, "set")
    with pytest.raises(UsageError, match=f"  {name}: "):
        check_fields(args)


def test_a_trainer_refuses_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp16: float16 needs its losses scaled"):
        trainer(tmp_path, config={"fp16": True})


def test_refused_fields_are_named_all_at_once(tmp_path: Path) -> None:
    args = arguments(tmp_path, neftune_noise_alpha=1.0, lr_scheduler_type="greedy", eval_strategy="steps")
    args.deepspeed = "some.json"
    with pytest.raises(UsageError, match=r"(?s)neftune.*deepspeed.*lr_scheduler_type"):
        check_fields(args)


def test_fields_without_effect_are_named_in_one_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"data_seed.*dataloader_num_workers") as caught:
        check_fields(arguments(tmp_path, dataloader_num_workers=2, data_seed=1))
    assert len(caught) == 1


def test_a_field_that_nobody_knows_is_named(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Later(PPOConfig):
        new_feature: int = 0

    with pytest.warns(UserWarning, match="new_feature.*not known"):
        check_fields(arguments(tmp_path, Later, new_feature=1))


def test_the_defaults_are_let_pass_without_a_word() -> None:
    check_fields(PPOConfig(output_dir="x", use_cpu=True))
    check_fields(SAFEConfig(output_dir="x", use_cpu=True))


@pytest.mark.parametrize("name", [name for name in FILLED])
def test_a_size_that_contradicts_the_others_is_an_error(name: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, **{name: 3})
    with pytest.raises(UsageError, match=f"{name} is 3"):
        fill_sizes(args, 16, 1)


def test_sizes_are_filled_in_as_trl_does_and_twice_alike(tmp_path: Path) -> None:
    args = arguments(
        tmp_path, gradient_accumulation_steps=3, num_mini_batches=4, total_episodes=None, num_train_epochs=2.0
    )
    for _ in range(2):
        fill_sizes(args, 16, 2)
        assert (args.batch_size, args.local_batch_size, args.mini_batch_size) == (24, 12, 6)
        assert (args.local_mini_batch_size, args.micro_batch_size, args.world_size) == (3, 8, 2)
        assert (args.total_episodes, args.num_total_batches) == (32, 2)


def test_minibatches_must_divide_the_batch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"num_mini_batches \(3\)"):
        fill_sizes(arguments(tmp_path, num_mini_batches=3), 16, 1)


def test_values_out_of_range_are_named(tmp_path: Path) -> None:
    args = arguments(tmp_path, lam=1.5, kl_coef=-1.0)
    fill_sizes(args, 16, 1)
    with pytest.raises(UsageError, match=r"(?s)kl_coefficient.*lam|lam.*kl_coefficient"):
        settings_of(args, own_value_model=False, stops=True)


def test_an_argument_parser_takes_all_three() -> None:
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    words = ["--dataset_name", "d", "--output_dir", "o", "--use_cpu", "--stop_token", "eos", "--kl_estimator", "k3"]
    words += ["--use_peft", "--lora_r", "4"]
    script, args, model = parser.parse_args_into_dataclasses(words)
    assert (script.dataset_name, args.stop_token, args.kl_estimator) == ("d", "eos", "k3")
    assert "--missing_eos_penalty" in parser.format_help()
    adapter = get_peft_config(model)
    assert adapter is not None
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (4, 32, 0.05)
    assert get_peft_config(ModelConfig()) is None


def test_an_argument_parser_takes_safes_fields() -> None:
    (args,) = HfArgumentParser((SAFEConfig,)).parse_args_into_dataclasses(
        ["--output_dir", "o", "--use_cpu", "--no_phases", "--pid_integral", "0.5", "--critic_target_decay", "0.3"]
    )
    assert (args.phases, args.pid_integral, args.critic_target_decay) == (False, 0.5, 0.3)


def test_safes_defaults_are_those_of_its_experiment(tmp_path: Path) -> None:
    args = SAFEConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args.kl_coef == 0
    fill_sizes(args, 100, 1)
    ours, shipped = settings_of(args, own_value_model=False, stops=True), config.resolve("safe")
    assert (ours.penalty, ours.critic, ours.loss, ours.advantage) == (
        shipped.penalty,
        shipped.critic,
        shipped.loss,
        shipped.advantage,
    )
    assert ours.reward.normalise and ours.update.preview is None
    limits = (shipped.update.max_grad_norm, shipped.update.critic_max_grad_norm)
    assert (ours.update.max_grad_norm, ours.update.critic_max_grad_norm) == limits


def test_each_of_safes_fields_reaches_its_setting(tmp_path: Path) -> None:
    alone = {"momentum_coef": {"entropy_gate": False, "pid": False, "phases": False}}
    for field in dataclasses.fields(SAFEConfig):
        key = getattr(field.metadata.get("help"), "key", None)
        if key is None:
            continue
        value = another(field)
        args = SAFEConfig(
            output_dir=str(tmp_path), use_cpu=True, **{**alone.get(field.name, {}), field.name: value}
        )
        fill_sizes(args, 100, 1)
        found: Any = settings_of(args, own_value_model=False, stops=True)
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value, field.name


def another(field: dataclasses.Field[Any]) -> Any:
    """A value that is allowed, and not the default."""
    options = {"critic_heads": "single", "critic_head": "linear", "value_combine": "max", "phase_rule": "published"}
    if field.name in options:
        return options[field.name]
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int):
        return field.default + 1
    return 0.5 if field.default is None else field.default * 0.75 + 0.1


def test_bfloat16_is_on_where_it_can_be(tmp_path: Path) -> None:
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True).bf16 is True
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True, fp16=True).bf16 is False


def test_where_there_is_no_bfloat16_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safebench.trl.config.is_torch_bf16_gpu_available", lambda: False)
    with pytest.warns(UserWarning, match="float32 is used"):
        assert PPOConfig(output_dir=str(tmp_path)).bf16 is False


@pytest.mark.parametrize("old", [True, False])
def test_checkpointing_has_two_names(old: bool, tmp_path: Path) -> None:
    args = arguments(tmp_path, gradient_checkpointing=old)
    assert isinstance(args, TrainingArguments)
    assert (args.gradient_checkpointing, args.activation_checkpointing) == (old, old)
