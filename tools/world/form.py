"""Turn Qwen2 weights into Llama's form and back, value for value.

transformers 5 gives every folder whose model type is ``qwen2`` the class ``Qwen2Tokenizer``, which ignores the
normalizer and the splitting rule in tokenizer.json and adds a token. ``AutoTokenizer`` therefore cannot read back a
small Qwen2 with a tokenizer of its own. Llama with biases on its attention computes the same function: Qwen2 has no
bias on the output projection, and Llama's is zero. Training uses Qwen2's form, shipping Llama's.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "num_labels",
)
_OUTPUT_BIAS = "o_proj.bias"


def as_llama(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same function as a Llama with attention biases, in float32."""
    classifier = isinstance(model, Qwen2ForSequenceClassification)
    config = LlamaConfig(**_sizes(model), attention_bias=True, mlp_bias=False)
    other = (LlamaForSequenceClassification if classifier else LlamaForCausalLM)(config)
    weights = dict(model.state_dict())
    weights |= {name: torch.zeros_like(w) for name, w in other.state_dict().items() if name.endswith(_OUTPUT_BIAS)}
    other.load_state_dict(weights)
    return other.eval()


def as_qwen2(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same function as a Qwen2; the inverse of ``as_llama``."""
    classifier = isinstance(model, LlamaForSequenceClassification)
    other = (Qwen2ForSequenceClassification if classifier else Qwen2ForCausalLM)(Qwen2Config(**_sizes(model)))
    other.load_state_dict({name: w for name, w in model.state_dict().items() if not name.endswith(_OUTPUT_BIAS)})
    return other.eval()


def _sizes(model: PreTrainedModel) -> dict[str, Any]:
    return {key: getattr(model.config, key) for key in _SHARED}
