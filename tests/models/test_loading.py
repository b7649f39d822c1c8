"""Models are loaded whole, adapters folded in, or refused by the name of what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from safebench.config import schema as s
from safebench.errors import BadResource, MissingResource, SafebenchError, UsageError
from safebench.models import assemble
from safebench.models.adapters import attach
from safebench.models.assemble import adapt
from safebench.models.libraries import quiet_libraries
from safebench.models.loading import load_tokenizer, load_whole, load_with_notices
from safebench.models.rewards import load_reward
from tests.support.tiny import CPU, END, PAD, qwen2_config, tiny_tokenizer

IDS = torch.arange(2, 12)[None]


def saved(folder: Path, kind: Any = Qwen2ForCausalLM, **more: Any) -> Path:
    """Save a tiny model with random weights and its tokenizer."""
    torch.manual_seed(3)
    kind(qwen2_config(**{"tie_word_embeddings": False, **more})).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, base: PreTrainedModel, base_name: str, **more: Any) -> PeftModel:
    """Save an adapter that acts, and return the model with it."""
    config: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"} | more
    with quiet_libraries():
        made = get_peft_model(base, LoraConfig(**config)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    made.peft_config["default"].base_model_name_or_path = base_name
    made.save_pretrained(folder, save_embedding_layers=False)
    return made


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


def whole(folder: Path, auto: Any = AutoModelForCausalLM) -> Any:
    return load_whole(auto, str(folder), what="model it", dtype=torch.float32)[0]


def drop(folder: Path, *names: str) -> None:
    """Remove weights from a saved model."""
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k not in names}, file, {"format": "pt"})


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_missing_weight_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    drop(saved(tmp_path), name)
    with pytest.raises(BadResource, match=f"missing: {name}"):
        whole(tmp_path)


def test_a_tied_head_may_be_left_out_and_one_that_is_not_tied_stays_itself(tmp_path: Path) -> None:
    tied = saved(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    whole(tied)
    apart = saved(tmp_path / "apart")
    config = json.loads((apart / "config.json").read_text())
    (apart / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = whole(apart)
    assert torch.equal(model.lm_head.weight, load_file(apart / "model.safetensors")["lm_head.weight"])
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(whole(tmp_path / "again")), logits(model)), "saved, it is not tied either"


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(5, 16)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(SafebenchError, match=r"mlp\.up_proj\.weight"):
        whole(tmp_path)


def test_weights_without_a_place_are_told(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"v_head.summary.weight": torch.zeros(1, 16)}, file, {"format": "pt"})
    found = load_with_notices(s.Model(name=str(tmp_path)), 0, CPU)
    assert found.notices == (f"model {tmp_path}: weights without a place in the model: v_head.summary.weight",)


def test_a_classifier_is_no_language_model_nor_the_reverse(tmp_path: Path) -> None:
    for tied in (False, True):
        folder = saved(tmp_path / f"rm-{tied}", Qwen2ForSequenceClassification, num_labels=1, tie_word_embeddings=tied)
        with pytest.raises(BadResource, match="saved as Qwen2ForSequenceClassification"):
            whole(folder)
    with pytest.raises(BadResource, match=r"missing: score\.weight"):
        load_reward(str(saved(tmp_path / "lm")), CPU)


@pytest.mark.parametrize("relative", [False, True])
def test_an_adapter_folder_is_base_and_adapter(tmp_path: Path, relative: bool) -> None:
    base = saved(tmp_path / "base")
    there = adapter(tmp_path / "sft", whole(base), "base" if relative else str(base))
    plain, true = logits(whole(base)), logits(there)
    found = whole(tmp_path / "sft")
    assert not isinstance(found, PeftModel)
    torch.testing.assert_close(logits(found), true, rtol=0, atol=2e-5)
    assert float((true - plain).abs().max()) > 0.05
    policy = adapt(found, load_tokenizer(str(tmp_path / "sft"), "it"), s.Model(), 0, CPU)
    with policy.as_reference(), torch.no_grad():
        reference = policy.reference_output(policy.hidden_states(IDS, torch.ones_like(IDS)))
    torch.testing.assert_close(reference, true, rtol=0, atol=2e-5)


def test_an_adapter_on_an_adapter_is_both(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    adapter(tmp_path / "one", whole(base), str(base))
    there = adapter(tmp_path / "two", whole(tmp_path / "one"), str(tmp_path / "one"))
    torch.testing.assert_close(logits(whole(tmp_path / "two")), logits(there), rtol=0, atol=2e-5)


def test_a_reward_adapter_on_a_policys_adapter_is_both(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    adapter(tmp_path / "sft", whole(base), str(base))
    whole(tmp_path / "sft").save_pretrained(tmp_path / "merged")
    torch.manual_seed(1)
    classifier = Qwen2ForSequenceClassification.from_pretrained(tmp_path / "merged", num_labels=1)
    classifier.config.pad_token_id = PAD
    more = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    there = adapter(tmp_path / "rm", classifier, str(tmp_path / "sft"), **more)
    found = whole(tmp_path / "rm", AutoModelForSequenceClassification)
    torch.testing.assert_close(logits(found), logits(there), rtol=0, atol=2e-5)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_that_trained_one_end_of_the_model_is_whole(tmp_path: Path, module: str) -> None:
    base = saved(tmp_path / "base")
    there = adapter(tmp_path / "sft", whole(base), str(base), modules_to_save=[module])
    torch.testing.assert_close(logits(whole(tmp_path / "sft")), logits(there), rtol=0, atol=2e-5)


def test_an_adapter_that_transformers_saved_is_read_too(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    with quiet_libraries():
        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    true = logits(model.eval())
    model.save_pretrained(tmp_path / "own")
    torch.testing.assert_close(logits(whole(tmp_path / "own")), true, rtol=0, atol=2e-5)


def test_an_adapters_trained_head_makes_the_classifier_whole(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    torch.manual_seed(1)
    classifier = Qwen2ForSequenceClassification.from_pretrained(base, num_labels=1)
    classifier.config.pad_token_id = PAD
    more = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    there = adapter(tmp_path / "rm", classifier, str(base), **more)
    found = whole(tmp_path / "rm", AutoModelForSequenceClassification)
    torch.testing.assert_close(logits(found), logits(there), rtol=0, atol=2e-5)
    scores = load_reward(str(tmp_path / "rm"), CPU).score(["a b", "a b"], ["c", "d"])
    assert torch.equal(scores, load_reward(str(tmp_path / "rm"), CPU).score(["a b", "a b"], ["c", "d"]))


def test_a_partly_loaded_adapter_is_refused_by_name(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    adapter(tmp_path / "sft", whole(base), str(base))
    file = tmp_path / "sft" / "adapter_model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if "layers.1" in name and "lora_B" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, file)
    with pytest.raises(BadResource, match=r"lacks .*layers\.1"):
        whole(tmp_path / "sft")
    save_file(weights | {lost.replace("layers.1", "layers.7"): weights[lost].clone()}, file)
    with pytest.raises(BadResource, match=r"fit no layer: .*layers\.7"):
        whole(tmp_path / "sft")


def test_what_an_adapter_does_not_say_is_asked_for(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    adapter(tmp_path / "sft", whole(base), str(tmp_path / "gone"))
    with pytest.raises(MissingResource, match=r"is an adapter of .*gone, which is not there"):
        whole(tmp_path / "sft")
    config = tmp_path / "sft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(BadResource, match="does not say what model it belongs to"):
        whole(tmp_path / "sft")
    saved(tmp_path / "sft")
    with pytest.raises(BadResource, match="an adapter and a whole model"):
        whole(tmp_path / "sft")


def test_targets_that_fit_in_part_are_told_or_refused(tmp_path: Path) -> None:
    base = Qwen2ForCausalLM(qwen2_config())
    for layer in base.model.layers:
        layer.mlp.gate = layer.mlp.__dict__["_modules"].pop("gate_proj")
    _, notices = attach(base, "it", s.Lora(), 0)
    assert any("no layer called gate_proj" in text for text in notices)
    with pytest.raises(UsageError, match=r"no layer called qproj; its linear layers are .*q_proj"):
        attach(Qwen2ForCausalLM(qwen2_config()), "it", s.Lora(targets=("qproj", "v_proj")), 0)


def test_layers_without_adapter_are_told(tmp_path: Path) -> None:
    base = Qwen2ForCausalLM(qwen2_config())
    attention = base.model.layers[1].self_attn
    attention.query = attention.__dict__["_modules"].pop("q_proj")
    _, notices = attach(base, "it", s.Lora(targets=("q_proj",)), 0)
    assert notices == ("1 of the 2 layers model.layers of it have no adapter: 1",)


def test_a_template_whose_end_stops_nothing_is_told() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} <|im_end|> {% endfor %}{% if add_generation_prompt %}a{% endif %}"
    )
    assert "ends a reply with <|im_end|>, and only <end>" in str(assemble.end_fault(tokenizer, (END,)))
    assert assemble.end_fault(tokenizer, (tokenizer.convert_tokens_to_ids("<|im_end|>"),)) is None
    assert assemble.template_fault(tokenizer, "b c") is None
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert "no place where the reply begins" in str(assemble.template_fault(tokenizer, "b c"))


def test_an_adapter_whose_layers_share_weights_cannot_be_folded(tmp_path: Path) -> None:
    """A fold into a tied embedding acts in the output layer too, where the adapter never was."""
    for number, target in enumerate(("embed_tokens", "lm_head")):
        base = saved(tmp_path / f"base{number}", tie_word_embeddings=True)
        with pytest.warns(UserWarning, match="tie"):
            adapter(tmp_path / f"sft{number}", whole(base), str(base), target_modules=[target, "q_proj"])
        with pytest.raises(BadResource, match=r"with the adapter apart a logit is .*, folded") as fault:
            whole(tmp_path / f"sft{number}")
        assert "tie_word_embeddings=false" in str(fault.value.hint)
    apart = saved(tmp_path / "apart")
    there = adapter(tmp_path / "sft", whole(apart), str(apart), target_modules=["embed_tokens", "lm_head"])
    torch.testing.assert_close(logits(whole(tmp_path / "sft")), logits(there), rtol=0, atol=2e-5)


def test_an_adapter_on_a_folded_one_names_that_one(tmp_path: Path) -> None:
    """What a run saves belongs on base and adapter, not on the bare base."""
    base = saved(tmp_path / "base")
    adapter(tmp_path / "sft", whole(base), str(base))
    first = whole(tmp_path / "sft")
    adapted, _ = attach(first, "it", s.Lora(rank=2, targets=["q_proj"]), seed=0)
    with torch.no_grad():
        for key, p in adapted.named_parameters():
            p.add_(0.1 if "lora_B" in key else 0.0)
    adapted.eval().save_pretrained(tmp_path / "run", save_embedding_layers=False)
    said = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(tmp_path / "sft")
    torch.testing.assert_close(logits(whole(tmp_path / "run")), logits(adapted), rtol=0, atol=2e-5)


def test_layers_that_an_adapter_keeps_whole_may_have_more_tokens(tmp_path: Path) -> None:
    for number, more in enumerate(
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["embed_tokens", "lm_head"]})
    ):
        base = saved(tmp_path / f"base{number}")
        larger = whole(base)
        larger.resize_token_embeddings(larger.config.vocab_size + 3, mean_resizing=False)
        config = LoraConfig(r=2, task_type="CAUSAL_LM", **({"target_modules": ["q_proj"]} | more))  # type: ignore[arg-type]
        with quiet_libraries():
            made = get_peft_model(larger, config).eval()
        with torch.no_grad():
            for p in made.parameters():
                if p.requires_grad:
                    p.add_(0.1)
        made.peft_config["default"].base_model_name_or_path = str(base)
        made.save_pretrained(tmp_path / f"sft{number}", save_embedding_layers=True)
        torch.testing.assert_close(logits(whole(tmp_path / f"sft{number}")), logits(made), rtol=0, atol=2e-5)


def test_settings_of_an_adapter_that_nobody_understands_are_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    for key, value in (("use_superlora", True), ("alpha_pattern", {"no_such_layer": 99})):
        folder = tmp_path / key
        adapter(folder, whole(base), str(base))
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        with pytest.raises(BadResource, match="has settings that are not understood"):
            whole(folder)


def test_a_target_that_no_layer_has_is_told(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    adapter(tmp_path / "sft", whole(base), str(base), target_modules=["q_proj", "no_such_proj"])
    found = load_with_notices(s.Model(name=str(tmp_path / "sft")), 0, CPU)
    assert any("no layer called no_such_proj" in told for told in found.notices)


def test_an_adapter_that_is_its_own_base_is_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    for name, below in (("one", "two"), ("two", "one"), ("self", "self")):
        adapter(tmp_path / name, whole(base), str(tmp_path / below))
    for name in ("one", "self"):
        for load in (whole, lambda folder: load_tokenizer(str(folder), "it")):
            (tmp_path / name / "tokenizer_config.json").unlink(missing_ok=True)
            with pytest.raises(BadResource, match="is an adapter whose base is itself"):
                load(tmp_path / name)


def test_the_head_of_another_kind_of_model_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    folder = saved(tmp_path, Qwen2ForSequenceClassification, num_labels=1, tie_word_embeddings=True)
    file = folder / "config.json"
    for named in (None, ["Qwen2ForRewardModel"]):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": named}))
        with pytest.raises(BadResource, match=r"another kind of model.*score\.weight"):
            whole(folder)


def test_code_that_is_not_run_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    file = folder / "config.json"
    own = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": own}))
    (told,) = load_with_notices(s.Model(name=str(folder)), 0, CPU).notices
    assert "own code (modeling_own.OwnForCausalLM) is not run, but transformers' Qwen2ForCausalLM" in told


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(SafebenchError, match="tokenizer"):
        load_tokenizer(str(folder), "model it")


def test_a_padding_token_beyond_the_embedding_is_the_end_token_in_its_place(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    base, tokenizer, notices = load_with_notices(s.Model(name=str(folder)), 0, CPU)
    rows = base.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= rows:
        base.resize_token_embeddings(len(tokenizer) - 1)
        base.save_pretrained(folder)
        base, tokenizer, notices = load_with_notices(s.Model(name=str(folder)), 0, CPU)
    assert tokenizer.pad_token_id < base.get_input_embeddings().weight.shape[0]
    assert "is beyond its embedding's" in notices[0] and f"{tokenizer.pad_token} pads in its place" in notices[0]
    adapt(base, tokenizer, s.Model(lora=s.Lora(rank=2)), 0, CPU)
