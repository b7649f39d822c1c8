"""Every causal language model class of transformers, tiny, random and built in memory.

A configuration keeps the defaults of its family and has its sizes cut by field name. One layer of each kind that the
defaults have stays. Each probability of dropout is 0.1, and what scales or caps logits does so visibly.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 320
PAD, END = 0, 1
SPREAD = 0.3
"""Standard deviation of weights: the distributions of next tokens are far from uniform."""

LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_blocks",
    "num_layers_per_stack",
    "depth",
    "num_global_layers",
    "conf_num_hidden_layers",
)

# Sizes by the names that the families give them.
SIZES: dict[str, int] = {
    name: size
    for size, names in {
        1: "num_key_value_heads num_kv_heads kv_n_heads n_groups mamba_n_groups mamba_ngroups n_group num_expert_group "
        "topk_group first_k_dense_replace num_dense_layers n_shared_experts num_shared_experts "
        "moe_num_shared_experts num_nextn_predict_layers indexer_kv_heads swa_num_key_value_heads rescale_every "
        "num_residual_layers o_groups laurel_rank n_layers_per_attn_res_block",
        2: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
        "attention_heads num_decoder_attention_heads num_encoder_attention_heads conf_num_attention_heads "
        "num_experts_per_tok num_experts_per_token moe_k moe_top_k moe_topk top_k_experts "
        "linear_num_heads linear_num_key_heads linear_num_value_heads swa_num_attention_heads indexer_n_heads "
        "layer_group_size "
        "global_attn_every_n_layers attn_layer_period num_mem_blocks n_mamba_heads heads_per_ngram mamba_num_heads "
        "num_query_groups attn_layer_offset index_topk_blocks no_rope_layer_interval num_codebooks "
        "num_semantic_quantizers expert_layer_period altup_num_inputs split_ngram_parts num_random_blocks "
        "sliding_window_pattern interleave_moe_layer_step spatial_merge_size mamba_n_heads",
        4: "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num num_quantizers "
        "router_hidden_size gated_norm_rank d_rel adapter_rank chunk_length_s compress_ratio num_conv_pos_embeddings "
        "number_of_experts hc_lowrank make_ngram_vocab_size_divisible_by index_block_size "
        "lsh_attn_chunk_length local_attn_chunk_length",
        8: "sliding_window sliding_window_size attention_window_size local_attention attention_chunk_size window_size "
        "local_attention_window_len qk_nope_head_dim qk_rope_head_dim state_size mamba_d_state ssm_state_size "
        "chunk_size mamba_chunk_size index_topk rotary_dim kv_lora_rank q_lora_rank mamba_dt_rank time_step_rank "
        "o_lora_rank index_head_dim block_size hidden_size_per_layer_input embedding_size_per_layer indexer_head_dim "
        "keep_window_size ple_embed_dim attn_scale_floor floor_scale log_scaling_n_floor",
        16: "index_n_heads head_dim attention_head_dim attention_head_size d_head dim_head linear_head_dim "
        "linear_key_head_dim linear_value_head_dim v_head_dim kv_channels mamba_head_dim mamba_d_head swa_head_dim "
        "qk_head_dim d_kv original_max_position_embeddings prompt_length segment_types position_bias_num_buckets",
        32: "hidden_size d_model n_embd emb_dim embedding_dim embedding_size input_embedding_size "
        "output_embedding_size lru_width attention_hidden_size word_embed_proj_dim adapter_out_dim hidden_size_global "
        "backbone_hidden_size input_size out_hidden_size num_centroids pronunciation_embed_dim shape_embed_dim "
        "dim_model_base pronunciation_vocab_size shape_vocab_size centroid_intermediate_top_k",
        64: "intermediate_size d_ff decoder_ffn_dim encoder_ffn_dim ffn_dim feed_forward_size dim_ff dff d_inner "
        "ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size intermediate_size_mlp "
        "dense_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size mamba_d_ssm "
        "shared_intermediate_size shared_experts_intermediate_size mlp_dim rel_extent block_multiple_of "
        "num_position_embeddings ffn_round_up_to_multiple_of projector_input_dim projector_output_dim "
        "vision_output_dim encoder_hash_byte_group_vocab ngram_vocab_size_base",
        256: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions "
        "model_max_length max_source_positions position_bias_max_distance",
        VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size",
    }.items()
    for name in names.split()
}

# What a family does to its logits, at a size that is seen.
LOGITS: dict[str, float] = {
    "final_logit_softcapping": 5.0,
    "logits_soft_cap": 5.0,
    "output_logit_soft_cap": 5.0,
    "logit_scale": 0.5,
    "logits_scaling": 2.0,
    "lm_head_multiplier": 0.5,
    "logits_mup_width_multiplier": 2.0,
}

# What else a family needs. A dotted name reaches into a nested configuration.
_GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_DOTS3 = {
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 8,
    "swa_kv_lora_rank": 8,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 16,
}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "heads_per_ngram": 2,
    "ple_embed_dim": 8,
}
_ZAMBA = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}
_MAMBA = {"mamba_n_heads": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_hidden_layers": 3},
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0},
    "diffllama": {"attention_dropout": 0.0, "num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {f"text_config.{name}": value for name, value in _DOTS3.items()}
    | {
        "vision_config.adapter_in_dim": 32,
        "audio_config.adapter_input_size": 32,
        "audio_config.downsample_hidden_size": 32,
    },
    "dots3_note_text": _DOTS3,
    "falcon_h1": _MAMBA,
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": _GEMMA_LAYERS,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
        "num_kv_shared_layers": 2,
        "intermediate_size": 64,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": _GEMMA_LAYERS,
        "num_kv_shared_layers": 2,
        "global_head_dim": 32,
    },
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"L_cycles": 1, "H_cycles": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY - 10},
    "inkling_text": {"unpadded_vocab_size": VOCABULARY - 10},
    "jamba": {"attn_layer_offset": 1},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 4},
    "ministral": {"head_dim": 16},
    "mllama": {"text_config.cross_attention_layers": [1]},
    "mpt": {"attn_config.attn_pdrop": 0},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 1},
    "got_ocr2": {"vision_config.image_size": 64},
    "phi4_multimodal": {
        "audio_config.nemo_conv_channels": 16,
        "audio_config.ext_pw_out_channel": 16,
        "audio_config.depthwise_separable_out_channel": 16,
    },
    "phimoe": {"lm_head_bias": True},
    "qwen4_exp": {f"text_config.{name}": value for name, value in _QWEN4.items()},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 32, **_ZAMBA},
    "zamba2": {"attention_hidden_size": 64, **_ZAMBA},
    "zaya": {"num_experts_per_tok": 1, "lm_head_bias": True},
}


# Draft models: their layers read the keys and values of a larger model. Their default configurations are refused.
ASSISTANTS = ("gemma4_assistant", "gemma4_unified_assistant")


# What AutoModelForCausalLM cannot make of a family's own configuration, whatever its sizes: part of what is raised,
# and the reason.
UNBUILDABLE = {
    "gemma3n": ("requires the timm library", "its vision tower needs timm, which is not installed"),
    "gemma4_assistant": ("layer types producing a cache", "transformers refuses that all of its layers share keys"),
    "gemma4_unified_assistant": (
        "layer types producing a cache",
        "transformers refuses that all of its layers share keys",
    ),
    "musicgen": ("no attribute 'dropout'", "its class takes another configuration than the one registered"),
    "musicgen_melody": ("no attribute 'dropout'", "its class takes another configuration than the one registered"),
}


class NotBuilt(Exception):
    """A model that cannot be built here, and why."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return the configuration of a tiny model of this type, dropout 0.1 wherever its family has dropout."""
    if model_type in ASSISTANTS:
        text = tiny_config(model_type.replace("assistant", "text")).to_dict()
        absent = {name: 0 for name in ("hidden_size_per_layer_input", "vocab_size_per_layer_input") if name in text}
        shared = {"num_kv_shared_layers": text["num_hidden_layers"]}
        return AutoConfig.for_model(model_type, text_config=text | absent | shared, backbone_hidden_size=32)
    return _small(AutoConfig.for_model(model_type), model_type, "")


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a tiny random model in evaluation mode, float32; NotBuilt says why there is none.

    ``changes`` are made to its configuration.
    """
    config = tiny_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        except (ImportError, AttributeError, ValueError) as fault:
            sign, reason = UNBUILDABLE.get(model_type, ("", ""))
            if not sign or sign not in str(fault):
                raise
            raise NotBuilt(reason) from fault
        _spread(model)
    return model.eval()


def _small(default: PretrainedConfig, model_type: str, prefix: str) -> PretrainedConfig:
    """Return a small copy of a configuration with its defaults."""
    overrides = OVERRIDES.get(model_type, {})
    values: dict[str, Any] = {}
    for name, value in vars(default).items():
        path = prefix + name
        if isinstance(value, PretrainedConfig):
            values[name] = _small(value, model_type, path + ".")
        elif name in LAYERS and value is not None:
            values[name] = 2
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            values[name] = SIZES[name]
        elif name in LOGITS and hasattr(default, name):
            values[name] = LOGITS[name]
        elif "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            values[name] = 0.1
        elif name in ("initializer_range", "init_std", "embed_init_std"):
            values[name] = SPREAD
        elif name == "pad_token_id":
            values[name] = PAD
        elif name == "eos_token_id":
            values[name] = END
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            values[name] = VOCABULARY - 1 - len(values) % 16
    if vars(default).get("kv_lora_rank"):
        values["num_key_value_heads"] = SIZES["num_attention_heads"]
        if vars(default).get("head_dim") == vars(default)["qk_rope_head_dim"]:
            values["head_dim"] = SIZES["qk_rope_head_dim"]
    values |= _layers(default)
    if hasattr(default, "is_decoder"):
        values["is_decoder"] = True
    values |= {name.removeprefix(prefix): value for name, value in overrides.items() if name.startswith(prefix)}
    values = {name: value for name, value in values.items() if "." not in name}
    return type(default)(**copy.deepcopy(values))


def _layers(default: PretrainedConfig) -> dict[str, Any]:
    """Return what a configuration lists by layer, cut to the first layer of each kind, at least 2 layers, at most 4."""
    found = next((name for name in LAYERS if isinstance(getattr(default, name, None), int)), None)
    if found is None:
        return {}
    count = getattr(default, found)
    lists = {
        name: value
        for name, value in vars(default).items()
        if isinstance(value, list | tuple) and len(value) == count and count > 2
    }
    kinds: dict[Any, int] = {}
    for i, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(repr(kind), i)
    if not lists:
        return {}
    chosen = sorted(kinds.values())[:4]
    if len(chosen) == 1:
        chosen = [0, 1]
    return {name: [value[i] for i in chosen] for name, value in lists.items()} | {found: len(chosen)}


def _spread(model: PreTrainedModel) -> None:
    """Draw what initialisation left near zero, as no trained model has it: matrices wide, biases narrow."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and float(parameter.std()) < SPREAD / 4:
                parameter.normal_(0.0, SPREAD)
            elif name.endswith("bias") and not bool(parameter.any()):
                parameter.normal_(0.0, 0.1)
        embedding = model.get_input_embeddings().weight
        if not bool(embedding[PAD].any()):
            embedding[PAD].normal_(0.0, SPREAD)
