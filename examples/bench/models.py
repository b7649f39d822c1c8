"""The models of the bench, embedded and random Qwen2: policy, reward model, value model, tokenizer, prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from safebench import registry


@dataclass(frozen=True)
class Shape:
    """Sizes of one comparison; replies are always sampled to their full length."""

    batch: int
    prompt_tokens: int
    reply_tokens: int
    epochs: int
    updates: int
    """Per process; the first one warms up and is not counted."""


SHAPES: dict[str, Shape] = {
    "embedded": Shape(32, 24, 24, 4, 4),
    "qwen2-50m": Shape(8, 96, 32, 4, 2),
    "qwen2-50m-tldr": Shape(2, 512, 53, 4, 2),
    "qwen2-50m-short": Shape(8, 16, 53, 4, 2),
    "toy": Shape(4, 6, 5, 2, 2),
}
"""Of the larger model: prompts three times the replies; the lengths of TRL's TL;DR example; short prompts and TRL's
default reply."""
_QWEN2 = {
    "qwen2-50m": {
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "toy": {
        "vocab_size": 128,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}


def load(name: str, own_value_model: bool) -> dict[str, Any]:
    """Return the trainer's arguments that are models: tokenizer, policy, reward model and, if asked, value model."""
    if name == "embedded":
        return _embedded(own_value_model)
    return _random(_QWEN2[name.removesuffix("-short").removesuffix("-tldr")], own_value_model)


def prompts(name: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return 64 prompts of the shape's length, of random tokens that are neither padding nor end."""
    shape, generator = SHAPES[name], torch.Generator().manual_seed(0)
    ordinary = len(tokenizer) - 2  # the last two end and pad
    found: list[list[int]] = torch.randint(8, ordinary, (64, shape.prompt_tokens), generator=generator).tolist()
    return found


def _embedded(own_value_model: bool) -> dict[str, Any]:
    proxy = registry.WORLD / "proxy-body"
    tokenizer = AutoTokenizer.from_pretrained(registry.WORLD / "policy", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # beyond the vocabulary: never sampled
    return {
        "processing_class": tokenizer,
        "model": AutoModelForCausalLM.from_pretrained(registry.WORLD / "policy"),
        "reward_model": AutoModelForSequenceClassification.from_pretrained(proxy),
        "value_model": AutoModelForSequenceClassification.from_pretrained(proxy) if own_value_model else None,
    }


def _random(sizes: dict[str, int], own_value_model: bool) -> dict[str, Any]:
    """Policy, reward and value model of one size, as in TRL's example scripts."""
    words = sizes["vocab_size"]
    ids = {"pad_token_id": None, "eos_token_id": words - 1, "bos_token_id": None}
    config = Qwen2Config(**sizes, **ids, tie_word_embeddings=True, num_labels=1)

    def made(kind: type[PreTrainedModel], seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        return kind(config)

    return {
        "processing_class": _tokenizer(words),
        "model": made(Qwen2ForCausalLM, 0),
        "reward_model": made(Qwen2ForSequenceClassification, 1),
        "value_model": made(Qwen2ForSequenceClassification, 2) if own_value_model else None,
    }


def _tokenizer(words: int) -> PreTrainedTokenizerFast:
    """Return words w0, w1, … and an end token; the pad token is beyond the vocabulary and so never sampled."""
    names = [*(f"w{i}" for i in range(words - 1)), "<end>", "<pad>"]
    model = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<end>", padding_side="left")
