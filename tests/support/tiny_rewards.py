"""Tiny reward models with random weights and the tokenizers that go with them, saved to folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TURNS
SPECIAL = ("<pad>", "<end>", "<s>", "[CLS]", "[SEP]")


def byte_tokenizer(
    *, template: str | None = TURNS, bos: bool = False, pairs: bool = False, more: Sequence[str] = (), **options: Any
) -> PreTrainedTokenizerFast:
    """One token per byte, blanks included. ``bos``: each text begins with <s>. ``pairs``: as BERT's, with segments."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    made = Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    known: dict[str, str] = {"pad_token": "<pad>"}
    if pairs:
        known |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        made.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
        options = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} | options
        template = None
    else:
        known |= {"eos_token": "<end>"}
    if bos:
        known |= {"bos_token": "<s>"}
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **{**known, **options})
    tokenizer.add_tokens(list(more))
    tokenizer.chat_template = template
    return tokenizer


def classifier(kind: str = "qwen2", *, labels: int = 1, rows: int = 270, **more: Any) -> PreTrainedModel:
    """A classifier of width 16 with weights wide enough for scores that differ."""
    sizes: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "num_labels": labels,
    }
    if kind == "qwen2":
        sizes |= {"num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        sizes = {
            "vocab_size": rows, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128, "num_labels": labels,
            "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
        }
    config = AutoConfig.for_model(kind, **(sizes | more))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
    return model


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Write both to ``folder`` and return its path."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
