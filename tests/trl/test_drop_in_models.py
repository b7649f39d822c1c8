"""Policies, references and critics of the drop-in, and what it saves: plain peft and transformers load it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from safebench.errors import BadResource, UsageError
from safebench.models.libraries import quiet_libraries
from safebench.training.measure import measure
from safebench.trl import PPOTrainer
from tests.support.drop_in import (
    BATCH,
    adapted,
    arguments,
    classifier,
    entries,
    finite,
    lora,
    policy_model,
    same,
    trainer,
    weights,
)
from tests.support.tiny import PAD, tiny_rollout, tiny_tokenizer

IDS = torch.tensor([[5, 9, 12, 30, 7]])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def reference_log_probs(made: PPOTrainer) -> tuple[Tensor, Tensor]:
    """What the trainer's reference says of some replies, and what its policy does."""
    policy = made._world.policy
    found = measure(policy, tiny_rollout(policy), 1.0)
    return found.reference_log_probs, found.log_probs


def by_itself(made: PPOTrainer, model: Any) -> Tensor:
    """What ``model``, alone, says of the same replies as its own reference."""
    policy = copy.copy(made._world.policy)
    policy.reference = model.get_base_model() if isinstance(model, PeftModel) else model
    return measure(policy, tiny_rollout(made._world.policy), 1.0).reference_log_probs


def move(model: Any) -> None:
    """Change the trained weights."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=generator)


def test_without_reference_a_plain_model_keeps_a_frozen_copy(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    start = copy.deepcopy(made.model.policy)
    move(made.model.policy)
    reference, now = reference_log_probs(made)
    torch.testing.assert_close(reference, by_itself(made, start), rtol=0, atol=0)
    assert not torch.equal(reference, now)


def test_targets_that_match_in_part_are_told(tmp_path: Path) -> None:
    peft_config = LoraConfig(r=2, target_modules=["q_proj", "c_attn"], task_type="CAUSAL_LM")
    with pytest.warns(UserWarning, match="has no layer called c_attn: the adapter is on its other targets alone"):
        trainer(tmp_path, peft_config=peft_config)


def test_layers_without_an_adapter_are_told(tmp_path: Path) -> None:
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0], task_type="CAUSAL_LM")
    with pytest.warns(UserWarning, match="1 of the 2 layers model.layers of model have no adapter: 1"):
        trainer(tmp_path, peft_config=peft_config)


def test_a_given_reference_is_the_reference(tmp_path: Path) -> None:
    other = policy_model(seed=5)
    made = trainer(tmp_path, ref_model=other)
    reference, now = reference_log_probs(made)
    torch.testing.assert_close(reference, by_itself(made, policy_model(seed=5)), rtol=0, atol=0)
    assert not torch.equal(reference, now)


def test_an_adapted_model_may_be_the_reference(tmp_path: Path) -> None:
    made = trainer(tmp_path, ref_model=adapted())
    torch.testing.assert_close(reference_log_probs(made)[0], by_itself(made, adapted()), rtol=0, atol=0)


def test_with_a_fresh_adapter_the_model_without_it_is_the_reference(tmp_path: Path) -> None:
    made = trainer(tmp_path, peft_config=lora())
    base = policy_model()
    assert isinstance(made.model.policy, PeftModel)
    torch.testing.assert_close(logits(made.model), logits(base), rtol=0, atol=0)
    move(made.model.policy)
    reference, now = reference_log_probs(made)
    torch.testing.assert_close(reference, by_itself(made, base), rtol=0, atol=0)
    assert not torch.equal(reference, now)


def test_a_fresh_adapter_depends_on_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = weights(trainer(tmp_path, peft_config=lora()).policy_model)
    torch.manual_seed(2)
    assert same(one, weights(trainer(tmp_path, peft_config=lora()).policy_model))
    assert not same(one, weights(trainer(tmp_path, peft_config=lora(), config={"seed": 8}).policy_model))


def test_a_trained_adapter_as_it_came_is_the_reference_and_stays_so(tmp_path: Path) -> None:
    model = adapted()
    as_given, bare = logits(model), policy_model()
    made = trainer(tmp_path, model=model)
    torch.testing.assert_close(logits(made.model), as_given, rtol=0, atol=0)
    made.train()
    reference, now = reference_log_probs(made)
    torch.testing.assert_close(reference, by_itself(made, adapted()), rtol=0, atol=0)
    assert not torch.equal(reference, by_itself(made, bare))
    assert not torch.equal(reference, now)
    assert entries(made)[0]["kl/mean"] == 0.0


def test_only_the_active_adapter_is_trained_and_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path, model=adapted())
    assert all("default" in name for name in made._world.policy.trainable())
    made.save_model(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir() if path.is_dir()) == []
    with quiet_libraries():
        loaded = PeftModel.from_pretrained(policy_model(), tmp_path / "saved")
    assert set(loaded.peft_config) == {"default"}


def two_adapters() -> PeftModel:
    model = adapted()
    model.add_adapter("sft", LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".sft." in name:
                p.copy_(torch.linspace(-0.5, 0.4, p.numel()).view_as(p))
    return model


def test_adapters_may_be_named(tmp_path: Path) -> None:
    made = trainer(tmp_path, model=two_adapters(), config={"ref_adapter_name": "sft"})
    alone = two_adapters()
    alone.set_adapter("sft")
    torch.testing.assert_close(reference_log_probs(made)[0], by_itself(made, alone), rtol=0, atol=0)
    assert set(made.model.peft_config) == {"default", "sft"}


def test_the_trained_adapter_may_be_named(tmp_path: Path) -> None:
    names = {"model_adapter_name": "sft", "ref_adapter_name": "default"}
    made = trainer(tmp_path, model=two_adapters(), config=names)
    before = weights(made.model.policy)
    made.train()
    after = weights(made.model.policy)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".sft." in name for name in moved)


def test_an_adapter_not_loaded_for_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weight of the model is trainable"):
        trainer(tmp_path, model=adapted(trainable=False))


def by_transformers() -> Qwen2ForCausalLM:
    """A policy whose adapter was put into the model itself."""
    model = policy_model()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.add_adapter(LoraConfig(r=2, target_modules=["v_proj"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.linspace(-0.5, 0.4, p.numel()).view_as(p))
    return model


class WithValueHead(torch.nn.Module):
    """A policy in the form of TRL's AutoModelForCausalLMWithValueHead."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_model, self.v_head = policy_model(), torch.nn.Linear(16, 1)


def learned_prompts() -> Any:
    """A policy whose adapter is virtual tokens."""
    with quiet_libraries():
        return get_peft_model(policy_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def faults() -> dict[str, tuple[dict[str, Any], str]]:
    model = policy_model()
    return {
        "one object": ({"model": model, "ref_model": model}, "one object"),
        "text": ({"model": "gpt2"}, "^model is a str"),
        "reference as text": ({"ref_model": "gpt2"}, "ref_model is a str"),
        "value model as text": ({"value_model": "gpt2"}, "value_model is a str"),
        "value head": ({"model": WithValueHead()}, "model is a WithValueHead"),
        "targets": (
            {"peft_config": LoraConfig(target_modules=["none"])},
            r"peft_config \(LoraConfig\) on model .*none",
        ),
        "own adapter twice": ({"model": by_transformers(), "peft_config": lora()}, "has an adapter already"),
        "own adapter's name": (
            {"model": by_transformers(), "config": {"ref_adapter_name": "x"}},
            "no adapter 'x'; it has default",
        ),
        "learned prompts": ({"model": learned_prompts()}, r"^model \(Qwen2ForCausalLM in .*\) learns prompts"),
        "adapter twice": ({"model": adapted(), "peft_config": lora()}, "has an adapter already"),
        "no config": ({"peft_config": {"r": 4}}, "peft_config is a dict"),
        "prompts": ({"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)}, "learns prompts"),
        "name": ({"model": adapted(), "config": {"ref_adapter_name": "x"}}, "no adapter 'x'; it has default"),
        "no adapters": ({"config": {"model_adapter_name": "x"}}, "model has no adapters"),
        "two stops": ({"config": {"stop_token_id": 3}}, "both stop_token and stop_token_id"),
        "no tokenizer": ({"processing_class": 3}, "processing_class is a int"),
        "value": ({"value_model": policy_model()}, r"value_model \(Qwen2ForCausalLM\) has no `score`.*`lm_head`"),
        "optimizer": (
            {"optimizers": (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1), None)},
            "lacks .* of the policy's",
        ),
    }


@pytest.mark.parametrize("name", faults())
def test_what_cannot_work_is_said_at_once(name: str, tmp_path: Path) -> None:
    parts, message = faults()[name]
    with pytest.raises((UsageError, BadResource), match=message):
        trainer(tmp_path, **parts)


def test_dropout_is_off_in_all_models(tmp_path: Path) -> None:
    model = policy_model()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    made = trainer(tmp_path, model=model, peft_config=lora(lora_dropout=0.5), value_model=classifier())
    made.train()
    assert entries(made)[0]["update/approx_kl"] >= 0.0
    one = trainer(tmp_path, model=model.eval(), config={"num_ppo_epochs": 1, "total_episodes": BATCH})
    one.train()
    assert entries(one)[0]["val/ratio"] == pytest.approx(1.0, abs=1e-6)


def test_coarse_weights_are_told_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="trained weights are bfloat16"):
        trainer(tmp_path, model=policy_model().bfloat16())


def test_the_value_model_starts_the_critic_and_keeps_what_it_learns(tmp_path: Path) -> None:
    value = classifier()
    before = weights(value)
    made = trainer(tmp_path, value_model=value)
    assert {id(p) for p in made._critic.parameters()} == {id(p) for p in value.parameters()}
    made.train()
    after = weights(value)
    assert not torch.equal(before["score.weight"], after["score.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


def test_reward_and_value_model_may_not_be_one(tmp_path: Path) -> None:
    both = classifier()
    before = weights(both)
    with pytest.warns(UserWarning, match="one object"):
        made = trainer(tmp_path, reward_model=both, value_model=both)
    made.train()
    assert same(before, weights(both))


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("value", [False, True])
def test_every_combination_trains(safe: bool, value: bool, tmp_path: Path) -> None:
    made = trainer(tmp_path, safe=safe, value_model=classifier() if value else None, reward_model=classifier(8))
    before = weights(made.model)
    made.train()
    assert not same(before, weights(made.model))
    assert len(entries(made)) == 4
    assert all(map(finite, entries(made)))


def test_saved_adapters_load_with_plain_peft_and_merge_to_the_same(tmp_path: Path) -> None:
    base = policy_model()
    base.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    made = trainer(tmp_path, model=model, peft_config=lora())
    made.train()
    made.save_model(tmp_path / "saved")
    expected = logits(made.model)
    assert not torch.equal(expected, logits(base))
    with quiet_libraries():
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert isinstance(plain, Qwen2ForCausalLM)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)


def test_saved_models_load_with_plain_transformers(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.train()
    made.save_model()
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(made.model), rtol=0, atol=0
    )
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tiny_tokenizer().get_vocab()


def test_training_leaves_the_generation_config_alone(tmp_path: Path) -> None:
    model = policy_model()
    before = model.generation_config.to_dict()
    trainer(tmp_path, model=model, config={"stop_token": None}).train()
    assert model.generation_config.to_dict() == before


def test_without_stop_token_replies_fill_their_length_and_the_penalty_looks_for_the_end(tmp_path: Path) -> None:
    ends: list[float] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        ends.append(sum(1 in ids for ids in completion_ids) / len(completion_ids))
        return [0.0] * len(completions)

    made = trainer(
        tmp_path,
        model=likely_to_end(),
        reward_model=reward,
        config={"stop_token": None, "missing_eos_penalty": 2.0, "per_device_train_batch_size": 8, "num_ppo_epochs": 1},
    )
    made.train()
    for entry, share in zip(entries(made), ends, strict=True):
        assert entry["reply/length"] == 6
        assert entry["objective/scores"] == pytest.approx(-2.0 * (1 - share))
        assert entry["val/num_eos_tokens"] >= 8 * share
    assert any(0 < share < 1 for share in ends)


def likely_to_end() -> Qwen2ForCausalLM:
    """A policy that often samples the end token."""
    model = policy_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[1] *= 3.0
    return model


@pytest.mark.parametrize("config", [{"stop_token": "eos"}, {"stop_token": None, "stop_token_id": 9}])
def test_a_reply_ends_at_its_stop_token_and_the_penalty_looks_for_it(config: dict[str, Any], tmp_path: Path) -> None:
    stop = 1 if config["stop_token"] else 9
    found: list[list[int]] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        found.extend(completion_ids)
        return [0.0] * len(completions)

    model = policy_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[stop] *= 3.0
    made = trainer(
        tmp_path,
        model=model,
        reward_model=reward,
        config={**config, "missing_eos_penalty": 1.0, "total_episodes": 8, "per_device_train_batch_size": 8},
    )
    made.train()
    missing = [stop not in ids for ids in found]
    assert all(stop not in ids[:-1] for ids in found)
    assert 0 < sum(missing) < len(missing)
    assert entries(made)[0]["objective/scores"] == pytest.approx(-sum(missing) / len(missing))


def test_a_pad_token_beyond_the_embedding_is_never_read(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == policy_model().config.vocab_size
    made = trainer(tmp_path, processing_class=tokenizer, reward_model=classifier(8), value_model=classifier())
    made.train()
    assert made.processing_class.pad_token == "[PAD]"
    same_run = trainer(tmp_path, reward_model=classifier(8), value_model=classifier())
    same_run.train()
    assert same(weights(made.model), weights(same_run.model))


def test_padding_with_the_end_token_changes_nothing(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    made = trainer(tmp_path, processing_class=tokenizer, reward_model=classifier(8))
    made.train()
    padded = trainer(tmp_path, reward_model=classifier(8))
    padded.train()
    assert same(weights(made.model), weights(padded.model))
    assert tokenizer.pad_token is None
    assert PAD != 1


def test_bfloat16_is_computed_in_with_weights_in_float32(tmp_path: Path) -> None:
    plain, mixed = trainer(tmp_path), trainer(tmp_path, config={"bf16": True})
    for made in (plain, mixed):
        made.train()
        assert all(p.dtype == torch.float32 for p in made.model.parameters())
        assert all(map(finite, entries(made)))
    assert not same(weights(plain.model), weights(mixed.model))


def test_recomputing_gives_the_same_weights(tmp_path: Path) -> None:
    plain, recomputed = trainer(tmp_path), trainer(tmp_path, config={"gradient_checkpointing": True})
    for made in (plain, recomputed):
        made.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in recomputed.model.modules())
    torch.testing.assert_close(logits(plain.model), logits(recomputed.model), rtol=1e-5, atol=1e-5)


def test_the_arguments_are_by_name_or_by_place_as_in_trl(tmp_path: Path) -> None:
    from tests.support.drop_in import letters, rows

    args = arguments(tmp_path, total_episodes=BATCH)
    made = PPOTrainer(args, tiny_tokenizer(), policy_model(), None, letters, rows(), None)
    made.train()
    assert made.state.global_step == 1


def test_an_adapter_that_transformers_put_in_is_trained_and_is_its_own_reference(tmp_path: Path) -> None:
    config = {"save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path, model=by_transformers(), config=config)
    before = weights(made.model.policy)
    made.train()
    moved = {name for name, p in weights(made.model.policy).items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    reference, now = reference_log_probs(made)
    torch.testing.assert_close(reference, by_itself(made, by_transformers()), rtol=0, atol=0)
    assert not torch.equal(reference, by_itself(made, policy_model()))
    assert not torch.equal(reference, now)
    made.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    with quiet_libraries():
        loaded = PeftModel.from_pretrained(policy_model(), tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(made.model), rtol=0, atol=0)
    resumed = trainer(tmp_path, model=by_transformers(), config=config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(resumed.model), weights(made.model))


def test_adapters_that_transformers_put_in_have_names_too(tmp_path: Path) -> None:
    def both() -> Qwen2ForCausalLM:
        model = by_transformers()
        with torch.random.fork_rng(), pytest.warns(UserWarning, match="multiple adapters"):
            torch.manual_seed(4)
            model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "sft")
        return model

    model = both()
    start = weights(model)
    names = {"model_adapter_name": "default", "ref_adapter_name": "sft"}
    made = trainer(tmp_path, model=model, config=names)
    made.train()
    moved = {name for name, p in weights(model).items() if not torch.equal(p, start[name])}
    assert moved and all(".default." in name for name in moved)
    alone = both()
    alone.set_adapter("sft")
    torch.testing.assert_close(reference_log_probs(made)[0], by_itself(made, alone), rtol=0, atol=0)


def test_a_reference_whose_adapter_transformers_put_in_has_it(tmp_path: Path) -> None:
    made = trainer(tmp_path, ref_model=by_transformers())
    torch.testing.assert_close(reference_log_probs(made)[0], by_itself(made, by_transformers()), rtol=0, atol=0)
    assert made.ref_model is not None


def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = policy_model()
    other.resize_token_embeddings(60)
    with pytest.raises(BadResource, match="ref_model gives logits for 60 tokens, the model for 64"):
        trainer(tmp_path, ref_model=other)


def test_a_coarse_value_model_is_told_of_and_trains(tmp_path: Path) -> None:
    value = classifier().bfloat16()
    with pytest.warns(UserWarning, match="value model's trained weights are bfloat16"):
        made = trainer(tmp_path, value_model=value)
    made.train()
    assert {p.dtype for p in value.parameters()} == {torch.bfloat16}
    assert all(map(finite, entries(made)))
    value(input_ids=IDS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"optim": "adamw_bnb_8bit"}, "optim adamw_bnb_8bit: ImportError"),
        ({"lr_scheduler_kwargs": {"x": 1}}, "lr_scheduler_type linear: TypeError"),
        ({"report_to": "nowhere"}, "report_to is .*nowhere.*: ValueError"),
    ],
)
def test_what_libraries_make_of_the_arguments_names_them(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, config=config)


def test_a_checkpoint_of_other_models_is_named(tmp_path: Path) -> None:
    trainer(tmp_path, config={"save_strategy": "steps", "save_steps": 4}).train()
    with pytest.raises(BadResource, match="checkpoint-4, restored"):
        trainer(tmp_path, value_model=classifier()).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")
    with pytest.raises(BadResource, match=r"trainer_state.json: JSONDecodeError"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_what_is_saved_stops_where_it_was_trained_to(tmp_path: Path) -> None:
    made = trainer(tmp_path, config={"stop_token": None, "stop_token_id": 7})
    made.train()
    made.save_model(str(tmp_path / "saved"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id == 7


def test_a_stop_token_that_the_model_has_no_logit_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the stop token is 4000"):
        trainer(tmp_path, config={"stop_token": None, "stop_token_id": 4000})
