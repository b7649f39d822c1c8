"""Dimensions of the catalogue's language models, as transformers' config files state them.

Enough for ``--random-weights`` (``AutoConfig.for_model(**architecture)``) and for memory
estimates, without downloading anything. The totals in ``tests/test_catalog.py`` are the
published parameter counts.
"""

from __future__ import annotations

from typing import Any

Architecture = dict[str, Any]


def qwen2(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocabulary: int = 151936,
    tied: bool = True,
    positions: int = 32768,
) -> Architecture:
    """Qwen2 and Qwen2.5: biases on q, k and v."""
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }


def qwen3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, tied: bool) -> Architecture:
    """Qwen3: no biases, norms on queries and keys, head dimension 128."""
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


def llama(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    *,
    head_dim: int,
    tied: bool,
    rope_factor: float | None = None,
) -> Architecture:
    """Llama 3 (no ``rope_factor``), 3.1 and 3.2: eight key-value heads, no biases."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 500_000.0}
    if rope_factor is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "vocab_size": 128256,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192 if rope_factor is None else 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }


def gemma3(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Architecture:
    """Gemma 3, text only: head dimension 256, norms on queries and keys, five layers in six with a window."""
    return {
        "model_type": "gemma3_text",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 512,
        "vocab_size": 262144,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


EMBEDDED: Architecture = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
"""The embedded policy: Qwen2's sizes in Llama's form."""

QWEN2_5_05B = qwen2(896, 4864, 24, 14, 2)
QWEN2_5_15B = qwen2(1536, 8960, 28, 12, 2, positions=131072)
QWEN2_5_3B = qwen2(2048, 11008, 36, 16, 2)
QWEN2_5_7B = qwen2(3584, 18944, 28, 28, 4, vocabulary=152064, tied=False, positions=131072)
QWEN3_06B = qwen3(1024, 3072, 28, 16, 8, tied=True)
LLAMA_3_2_1B = llama(2048, 8192, 16, 32, head_dim=64, tied=True, rope_factor=32.0)
LLAMA_3_2_3B = llama(3072, 8192, 28, 24, head_dim=128, tied=True, rope_factor=32.0)
LLAMA_3_8B = llama(4096, 14336, 32, 32, head_dim=128, tied=False)
LLAMA_3_1_8B = llama(4096, 14336, 32, 32, head_dim=128, tied=False, rope_factor=8.0)
GEMMA3_270M = gemma3(640, 2048, 18, 4, 1)


def parameters(architecture: Architecture, *, head: bool = True) -> int:
    """Return the number of parameters of a decoder of the Qwen2, Qwen3, Llama or Gemma 3 family.

    ``head=False`` leaves out the language-model head (a reward model has a scalar head instead).
    """
    hidden, layers = architecture["hidden_size"], architecture["num_hidden_layers"]
    matrices = sum(rows * columns for rows, columns in projections(architecture).values())
    queries, keys = attention_widths(architecture)
    bias = queries + 2 * keys if architecture["model_type"] == "qwen2" else 0
    if architecture.get("attention_bias"):
        bias = queries + 2 * keys + hidden
    norms = (4 if architecture["model_type"] == "gemma3_text" else 2) * hidden
    if architecture["model_type"] in ("qwen3", "gemma3_text"):
        norms += 2 * head_dimension(architecture)
    embedding = architecture["vocab_size"] * hidden
    output = embedding if head and not architecture.get("tie_word_embeddings", False) else 0
    return int(embedding + layers * (matrices + bias + norms) + hidden + output)


def encoder_parameters(layers: int) -> int:
    """Return the parameters of the first ``layers`` layers of all-MiniLM-L6-v2, embeddings and pooler included.

    BERT's sizes: hidden 384, intermediate 1536, 30,522 words, 512 positions, two segments.
    """
    hidden, intermediate = 384, 1536
    square, norm = hidden * hidden + hidden, 2 * hidden
    layer = 4 * square + 2 * norm + 2 * hidden * intermediate + intermediate + hidden
    return (30522 + 512 + 2) * hidden + norm + layers * layer + square


def head_dimension(architecture: Architecture) -> int:
    """Return the width of one attention head."""
    return int(architecture.get("head_dim") or architecture["hidden_size"] // architecture["num_attention_heads"])


def attention_widths(architecture: Architecture) -> tuple[int, int]:
    """Return the widths of all queries and of all keys (values alike) of one layer."""
    width = head_dimension(architecture)
    keys = architecture.get("num_key_value_heads") or architecture["num_attention_heads"]
    return int(architecture["num_attention_heads"]) * width, int(keys) * width


def projections(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Return input and output width of each linear layer of one block, by its LoRA target name."""
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    queries, keys = attention_widths(architecture)
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
