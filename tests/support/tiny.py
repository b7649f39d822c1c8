"""A tiny random Qwen2 policy with a tokenizer of single letters, made in memory, and what goes with it."""

from __future__ import annotations

import dataclasses
import string
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from safebench import registry
from safebench.config import schema as s
from safebench.models.assemble import World, adapt
from safebench.models.generation import Encoded, Rollout, encode, sample
from safebench.models.loading import load_model
from safebench.models.policy import Policy
from safebench.models.prompts import Prompts, encode_prompt
from safebench.models.rewards import FunctionReward, RewardFunction

PAD, END = 0, 1
WORDS = [*string.ascii_letters, *string.digits]
VOCABULARY = 2 + len(WORDS)
STOPS = (END, *range(2 + len(string.ascii_letters), VOCABULARY))
CPU = torch.device("cpu")
PROMPTS = ["a b c d e", "f g", "h", "i j k", "l m n o", "p q r s t u", "v w", "x y z"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; a word is one letter or digit."""
    ids = {word: i for i, word in enumerate(["<pad>", "<end>", *WORDS])}
    model = Tokenizer(WordLevel(ids, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<end>")


def qwen2_config(**more: Any) -> Qwen2Config:
    """Two layers of width 16; wide weights, so that no distribution is near uniform."""
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
        **more,
    )


def tiny_policy(
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    moved: float = 0.0,
    attention_dropout: float = 0.0,
    dropout: float = 0.0,
    gradient_checkpointing: bool = False,
) -> Policy:
    """Two layers of width 16, random weights wide enough for a distribution that is far from uniform.

    ``moved`` is the deviation of the adapter's second matrix: at 0 the policy is the reference. A digit ends
    a reply as the end token does, so that lengths differ.
    """
    config = qwen2_config(tie_word_embeddings=True, attention_dropout=attention_dropout)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = Qwen2ForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        _widen_norms(base)
    model = s.Model(
        lora=s.Lora(rank=4, alpha=8, dropout=dropout), gradient_checkpointing=gradient_checkpointing
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by the attribute's old name.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        policy = adapt(base, tiny_tokenizer(), model, seed, CPU)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter.data = parameter.data.to(dtype)
            if "lora_B" in name and moved:
                parameter.copy_(moved * torch.randn(parameter.shape, generator=generator))
    policy.stop_ids = STOPS
    return policy


def _widen_norms(base: nn.Module) -> None:
    """Qwen2's norms round to float32 whatever the model's type: put in torch's own, which do not."""
    for module in list(base.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Qwen2RMSNorm):
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight.data.copy_(child.weight.data)
                setattr(module, name, norm)


def encoded(policy: Policy, texts: Sequence[str] = PROMPTS, limit: int = 48) -> Encoded:
    """Tokenize and pad prompts."""
    return encode(list(texts), [encode_prompt(policy.tokenizer, t) for t in texts], limit, PAD, CPU)


def draws(rows: int, tokens: int, seed: int = 6) -> Tensor:
    """Return uniform numbers [rows, tokens]."""
    return torch.rand(rows, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tiny_rollout(policy: Policy, texts: Sequence[str] = PROMPTS, tokens: int = 6, seed: int = 6) -> Rollout:
    """Sample a reply of up to ``tokens`` tokens to each text; this seed gives replies of many lengths."""
    return sample(policy, encoded(policy, texts), draws(len(texts), tokens, seed), 1.0)


def tiny_settings(arm: str = "ppo", **sections: Any) -> s.Settings:
    """Return settings for batches of 8 replies of up to 6 tokens; ``sections`` are merged over them."""
    base: dict[str, Any] = {
        "experiment": "tiny",
        "algorithm": arm,
        "reward": {"name": "share", "judge": None},
        "rollout": {"batch": len(PROMPTS), "reply_tokens": 6},
        "update": {"steps": 10, "learning_rate": 1e-2},
        "compute": {"device": "cpu"},
    }
    if arm == "safe":
        base["penalty"] = {}
    for name, section in sections.items():
        base[name] = {**(base.get(name) or {}), **section} if isinstance(section, dict) else section
    return s.Settings.model_validate(base)


def share_of_a(prompts: list[str], replies: list[str]) -> list[float]:
    """Score a reply by the share of its words that are ``a``."""
    return [reply.split().count("a") / max(1, len(reply.split())) for reply in replies]


def tiny_world(policy: Policy, reward: RewardFunction = share_of_a) -> World:
    """Put the policy among 40 prompts of three letters each; no judge."""
    texts = [f"{x} {y} {z}" for x in "abcde" for y in "fghi" for z in "jk"]
    return World(policy, Prompts(texts[:32], texts[32:]), FunctionReward("share", reward), None)


def narrow(monkeypatch: pytest.MonkeyPatch, device: torch.device, seed: int = 1) -> dict[str, Tensor]:
    """Return the weights of a catalogue's architecture, drawn at random on ``device``; narrow, so that it is quick."""
    entry = registry.model_source("qwen2.5-0.5b")
    sizes = {"hidden_size": 28, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 4096}
    made = dataclasses.replace(entry, architecture={**entry.architecture, **sizes})
    monkeypatch.setattr(registry, "model_source", lambda name: made)
    model, _ = load_model(s.Model(name="qwen2.5-0.5b", random_weights=True), seed, device)
    return dict(model.state_dict())
