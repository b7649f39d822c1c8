"""A model's own logits are the truth: what differs from them is supported, or refused with both numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from safebench.config import schema as s
from safebench.errors import BadResource, UsageError
from safebench.models import probes
from safebench.models.assemble import adapt
from safebench.models.libraries import quiet_libraries
from safebench.models.policy import PLAIN, Policy, forward_pass, positions
from tests.support.tiny import (
    CPU,
    END,
    PAD,
    VOCABULARY,
    draws,
    encoded,
    qwen2_config,
    tiny_policy,
    tiny_rollout,
    tiny_tokenizer,
)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": None,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test probe anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with weights far from zero, so that no distribution is near uniform."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator) + (p.dim() == 1))
    return model.eval()


def gemma(**more: Any) -> PreTrainedModel:
    sizes = SIZES | {"head_dim": 8, "num_key_value_heads": 1, "query_pre_attn_scalar": 8, "sliding_window": 32} | more
    return made(Gemma2ForCausalLM(Gemma2Config(**sizes)))


def phi() -> PreTrainedModel:
    return made(PhiForCausalLM(PhiConfig(**SIZES)))


def opt(**more: Any) -> PreTrainedModel:
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
        **more,
    )  # fmt: skip
    return made(OPTForCausalLM(config))


def mamba() -> PreTrainedModel:
    return made(MambaForCausalLM(MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=4,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
    )))  # fmt: skip


def rwkv() -> PreTrainedModel:
    return made(RwkvForCausalLM(RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, context_length=64,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
    )))  # fmt: skip


def roberta() -> PreTrainedModel:
    return made(RobertaForCausalLM(RobertaConfig(**SIZES, is_decoder=True)))


MODELS: dict[str, Any] = {
    "gemma": lambda: gemma(final_logit_softcapping=5.0),
    "phi": phi,
    "opt": opt,
    "mamba": mamba,
    "rwkv": rwkv,
    "roberta": roberta,
}


def adapted(base: PreTrainedModel, *, checkpointing: bool = False) -> Policy:
    lora = s.Lora(rank=4, alpha=8, targets=("all-linear",))
    return adapt(base, tiny_tokenizer(), s.Model(lora=lora, gradient_checkpointing=checkpointing), 0, CPU)


@torch.no_grad()
def true_log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the log-probabilities [T, V] of one row by the model's own forward pass."""
    log_p: Tensor = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return log_p


@pytest.mark.parametrize("name", MODELS)
def test_policy_and_reference_say_what_the_model_says_row_by_row(name: str) -> None:
    base = MODELS[name]()
    prompts = encoded(tiny_policy())
    rows = [ids[mask.bool()] for ids, mask in zip(prompts.ids, prompts.attention, strict=True)]
    before = [true_log_probs(base, row) for row in rows]
    policy = adapted(base)
    with torch.no_grad():
        for key, p in policy.trainable().items():
            if "lora_B" in key:
                p.fill_(0.05)
        ours = policy.logits(policy.hidden_states(prompts.ids, prompts.attention)).log_softmax(-1)
        with policy.as_reference():
            hidden = policy.hidden_states(prompts.ids, prompts.attention)
        reference = policy.reference_output(hidden).log_softmax(-1)
    for i, row in enumerate(rows):
        torch.testing.assert_close(ours[i, -len(row) :], true_log_probs(policy.model, row), rtol=0, atol=2e-4)
        torch.testing.assert_close(reference[i, -len(row) :], before[i], rtol=0, atol=2e-4)
    assert float((ours - reference).abs().max()) > 0.01, "the adapter acts"


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_sampled_from_what_one_whole_pass_says(name: str) -> None:
    policy = adapted(MODELS[name]())
    rollout, noise = tiny_rollout(policy), draws(8, 6)
    for i in range(8):
        row, count = rollout.ids[i], int(rollout.mask[i].sum())
        width = rollout.ids.shape[1] - rollout.mask.shape[1]
        start = int(rollout.attention[i].argmax())
        log_p = true_log_probs(policy.model, row[start : width + count])
        for t in range(count):
            cumulative = log_p[width - start + t - 1].double().exp().cumsum(-1)
            drawn = int(row[width + t])
            below = float(cumulative[drawn - 1]) if drawn else 0.0
            assert below - 1e-5 <= float(noise[i, t]) <= float(cumulative[drawn]) + 1e-5


def test_a_soft_cap_and_a_multiplier_are_found_wherever_the_configuration_keeps_them() -> None:
    assert adapted(gemma(final_logit_softcapping=5.0)).path.form.softcap == 5.0
    base = made(Qwen2ForCausalLM(qwen2_config()))
    base.config.somewhere = {"deep": [{"a_divisor": 4.0}]}
    plain = base.forward
    base.forward = lambda **inputs: _divided(plain(**inputs))  # type: ignore[method-assign]
    assert adapted(base).path.form.scale == 0.25


def _divided(out: Any) -> Any:
    out.logits = out.logits / 4.0
    return out


def test_logits_that_are_made_otherwise_are_refused_with_both_numbers() -> None:
    base = made(Qwen2ForCausalLM(qwen2_config()))
    plain = base.forward

    def shifted(**inputs: Any) -> Any:
        out = plain(**inputs)
        out.logits = out.logits + torch.linspace(-1, 1, VOCABULARY)
        return out

    base.forward = shifted  # type: ignore[method-assign]
    with pytest.raises(BadResource, match=r"own logit is -?\d[^,]*, ours -?\d"):
        adapted(base)


def test_a_model_that_sees_what_follows_is_no_causal_one() -> None:
    encoder = made(BertLMHeadModel(BertConfig(**SIZES, is_decoder=False)))
    with pytest.raises(BadResource, match="no causal language model"):
        adapted(encoder)
    decoder = made(BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)))
    assert adapted(decoder).path.captured, "a layer stands between decoder and output layer"


class StuckCache(Qwen2ForCausalLM):
    """Forgets what the cache holds."""

    def get_decoder(self) -> Any:
        inner = self.model

        class Forgetful(nn.Module):
            def forward(self, past_key_values: Any = None, **inputs: Any) -> Any:
                if past_key_values is not None:
                    inputs["attention_mask"] = inputs["attention_mask"][:, -1:]
                return inner(**inputs)

        return Forgetful()


def test_a_cache_that_disagrees_with_the_whole_pass_is_not_used() -> None:
    policy = adapted(made(StuckCache(qwen2_config())))
    assert policy.path.decoding == "whole"
    assert any("whole pass" in notice for notice in policy.notices)


LONG = 40


class ShortMemory(Qwen2ForCausalLM):
    """Sees the last 16 tokens of a cache; a whole pass sees all."""

    def get_decoder(self) -> Any:
        inner = self.model

        class Windowed(nn.Module):
            def forward(self, past_key_values: Any = None, **inputs: Any) -> Any:
                if past_key_values is not None and past_key_values.get_seq_length() > 16:
                    inputs["attention_mask"] = inputs["attention_mask"].clone()
                    inputs["attention_mask"][:, :-16] = 0
                return inner(past_key_values=past_key_values, **inputs)

        return Windowed()


class OtherWhenWide(Qwen2ForCausalLM):
    """Its decoder takes a batch of rows that are wide otherwise than its own forward pass does one row."""

    def get_decoder(self) -> Any:
        inner = self.model

        class Wide(nn.Module):
            def forward(self, input_ids: Any = None, **inputs: Any) -> Any:
                return inner(input_ids=input_ids % 7 if input_ids.shape[1] > 16 else input_ids, **inputs)

        return Wide()


def test_a_cache_that_forgets_beyond_a_length_is_not_used_in_rows_that_long() -> None:
    policy = adapted(made(ShortMemory(qwen2_config())))
    assert policy.path.decoding == "cache"
    assert probes.probe_length(policy, "tiny", 16).path.decoding == "cache"
    found = probes.probe_length(policy, "tiny", LONG)
    assert found.path.decoding == "whole"
    assert sum("whole pass" in notice for notice in found.notices) == 1


def test_long_rows_that_say_something_else_are_refused_with_both_numbers() -> None:
    policy = adapted(made(OtherWhenWide(qwen2_config())))
    with pytest.raises(BadResource, match=r"a row of 40 tokens .* own logit is .*, ours "):
        probes.probe_length(policy, "tiny", LONG)


def test_positions_that_depend_on_the_rows_length_are_refused_where_rows_get_there() -> None:
    """A token that is sampled early is measured in a longer row, whose positions are scaled otherwise."""
    scaled = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10_000.0}
    config = qwen2_config(rope_parameters=scaled)
    config.max_position_embeddings = 20
    policy = adapted(made(Qwen2ForCausalLM(config)))
    assert probes.probe_length(policy, "tiny", 18).path == policy.path
    with pytest.raises(BadResource, match=r"depends on how many follow, here 40: .* own logit") as fault:
        probes.probe_length(policy, "tiny", LONG)
    assert "rollout.reply_tokens" in str(fault.value.hint)


def test_a_row_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(BadResource, match=r"tiny \(OPT.*a row of 80 tokens.* ends in IndexError"):
        probes.probe_length(adapted(opt()), "tiny", 80)


@pytest.mark.parametrize("name", MODELS)
def test_windows_agree_in_rows_beyond_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's window here is 32 tokens."""
    policy = adapted(MODELS[name]())
    found = probes.probe_length(policy, "tiny", LONG)
    assert found.path == policy.path
    monkeypatch.setattr(probes, "_measured_length", lambda *_: pytest.fail("the probes ran again"))
    assert probes.probe_length(policy, "tiny", LONG).path == policy.path


@pytest.mark.parametrize("more", [{"dropout": 0.3}, {"attention_dropout": 0.3}, {"dropout": 0.3, "layerdrop": 0.3}])
def test_functional_dropout_is_off_in_training_passes(more: dict[str, float]) -> None:
    policy = adapted(opt(**more), checkpointing=True)
    prompts = encoded(policy)
    with policy.training():
        first, second = (policy.hidden_states(prompts.ids, prompts.attention) for _ in range(2))
    assert torch.equal(first, second)
    (policy.logits(first).sum()).backward()
    assert any(bool(p.grad.any()) for key, p in policy.trainable().items() if "lora_B" in key and p.grad is not None)


def test_dropout_that_stays_on_is_refused() -> None:
    base = made(Qwen2ForCausalLM(qwen2_config()))

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(x.shape) > 0.1) if torch.is_grad_enabled() else x

    base.model.norm = nn.Sequential(base.model.norm, Noisy())
    with pytest.raises(BadResource, match="two passes in training mode differ by up to"):
        adapted(base)


def test_the_adapters_own_dropout_is_no_fault_and_stays() -> None:
    policy = tiny_policy(dropout=0.2)
    assert policy.drops
    assert {module.p for module in policy.dropouts()} == {0.2}


def _peft_policy(**options: Any) -> Policy:
    base = made(Qwen2ForCausalLM(qwen2_config(tie_word_embeddings=options.pop("tied", False))))
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    with quiet_libraries():
        return Policy(get_peft_model(base, config).eval(), tiny_tokenizer(), (END,))


@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "lora_only"}])
def test_an_adapter_that_moves_the_reference_is_refused(options: dict[str, Any]) -> None:
    policy = _peft_policy(**options)
    kept = {key: p.clone() for key, p in policy.trainable().items()}
    with pytest.raises(UsageError, match=r"training .*bias.* moves the reference"):
        probes.probe(policy, "tiny")
    assert all(torch.equal(kept[key], p) for key, p in policy.trainable().items()), "the weights are as they were"


def test_an_adapter_whose_own_copies_are_trained_keeps_the_reference() -> None:
    probes.probe(_peft_policy(modules_to_save=["lm_head"]), "tiny")


@pytest.mark.processes
def test_another_process_finds_the_answer() -> None:
    """The names of an adapter's layers are a set, whose order depends on the process."""
    code = "from tests.models.test_probes import embedded_answer; print(embedded_answer())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(found) == 1


def embedded_answer() -> str:
    """Return the name of the file that holds the embedded policy's answer."""
    base = made(Qwen2ForCausalLM(qwen2_config()))
    return probes._answer_file(adapted(base), "it").name


def test_the_answer_is_kept_per_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = adapted(gemma(final_logit_softcapping=5.0))
    kept = list((tmp_path / "cache" / "safebench" / "probes").iterdir())
    assert len(kept) == 1
    monkeypatch.setattr(probes, "_measured_answer", lambda *_: pytest.fail("the probes ran again"))
    assert adapted(gemma(final_logit_softcapping=5.0)).path == first.path
    with pytest.raises(pytest.fail.Exception):
        adapted(gemma(final_logit_softcapping=6.0))
    damaged = gemma(final_logit_softcapping=5.0)
    with torch.no_grad():
        damaged.model.layers[1].mlp.up_proj.weight[-1, -1] += 1  # behind what few values of it would show
    with pytest.raises(pytest.fail.Exception):
        adapted(damaged)
    kept[0].write_text(json.dumps({"paths": []}))
    with pytest.raises(pytest.fail.Exception):
        adapted(gemma(final_logit_softcapping=5.0))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_rounding_stays_below_the_tolerance(dtype: torch.dtype, most: float) -> None:
    base = made(Qwen2ForCausalLM(qwen2_config())).to(dtype)
    ids = torch.arange(2, 14)
    alone, ones = ids[None, :7], torch.ones(1, 7, dtype=torch.long)
    rows, mask = probes._padded(ids, ids[:7], PAD)
    with torch.no_grad():
        one = forward_pass(base, PLAIN, alone, ones, positions(ones))[0]
        two = forward_pass(base, PLAIN, rows, mask, positions(mask))[0][1:, 5:]
        share = probes.gap(base.lm_head(one), base.lm_head(two)).share
    assert share <= most
    assert most * 2 <= (probes.FINE if dtype == torch.float32 else probes.COARSE)


def test_a_pass_that_fails_names_the_model() -> None:
    base = made(Qwen2ForCausalLM(qwen2_config()))
    base.model.layers[1].mlp.down_proj = nn.Linear(7, 16)
    with pytest.raises(BadResource, match=r"embedded \(Qwen2ForCausalLM\): a pass .* ends in RuntimeError"):
        adapt(base, tiny_tokenizer(), s.Model(lora=s.Lora(targets=("q_proj",))), 0, CPU)


def test_one_number_a_row_is_held_against_its_size_and_logits_against_their_spread():
    scores = torch.tensor([[-2.39], [-2.38], [-2.40], [-2.39]])  # a reward's of four rows that are all nonsense
    assert probes.gap(scores, scores + 0.03).share == pytest.approx(0.03 / 2.39, rel=1e-2)
    logits = torch.tensor([[9.0, 10.0, 11.0]], dtype=torch.float64)
    assert probes.gap(logits, logits + 0.1).share == pytest.approx(0.1, rel=1e-9)
