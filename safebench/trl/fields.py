"""What every field of the configuration does here: mapped, acted on, filled in, the script's own, refused or told of.

None is silently ignored: a refused one that is set is an error that names it, a field without effect is named in one
warning, and so is one that this file does not know.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from safebench.errors import UsageError

PLAIN: dict[str, str] = {
    "whiten_rewards": "advantage.whiten_rewards",
    "kl_coef": "reward.kl_coefficient",
    "kl_estimator": "reward.kl_estimator",
    "cliprange": "loss.clip",
    "vf_coef": "loss.value_coefficient",
    "cliprange_value": "loss.value_clip",
    "gamma": "advantage.gamma",
    "lam": "advantage.lam",
}
"""Fields whose value is that of a setting, as it stands."""

MAPPED: dict[str, str] = {
    "per_device_train_batch_size": "update.microbatch and, with accumulation and processes, rollout.batch",
    "gradient_accumulation_steps": "rollout.batch",
    "num_train_epochs": "update.steps, unless total_episodes or max_steps say",
    "total_episodes": "update.steps",
    "max_steps": "update.steps",
    "learning_rate": "update.learning_rate",
    "max_grad_norm": "update.max_grad_norm, policy and critic each; no clipping at 0",
    "bf16": "model.mixed_precision",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "activation_checkpointing": "model.gradient_checkpointing",
    "seed": "seed: prompts' order, sampling, mini-batches, critic, adapter",
    "use_cpu": "compute.device",
    "num_mini_batches": "update.minibatches",
    "num_ppo_epochs": "update.epochs",
    "local_rollout_forward_batch_size": "rollout.chunk",
    "response_length": "rollout.reply_tokens",
    "temperature": "rollout.temperature",
    "missing_eos_penalty": "reward.missing_eos_penalty",
    **PLAIN,
}
"""Fields that become settings of the loop (``translate.py``)."""

ACTED_ON: dict[str, str] = {
    **dict.fromkeys(("stop_token", "stop_token_id"), "what ends a reply"),
    **dict.fromkeys(("model_adapter_name", "ref_adapter_name"), "which adapters act"),
    **dict.fromkeys(
        ("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"), "the optimizer"
    ),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"), "the schedule"),
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_first_step"), "when is logged"),
    **dict.fromkeys(("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm"), "what the screen shows"),
    **dict.fromkeys(
        (
            "report_to",
            "run_name",
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
        ),
        "transformers' reporting callbacks",
    ),
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"), "evaluation"
    ),
    **dict.fromkeys(("output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model"), "saving"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "the best checkpoint"),
    **dict.fromkeys(("resume_from_checkpoint", "restore_callback_states_from_checkpoint"), "resuming"),
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        "uploading, which happens only when asked for",
    ),
    "num_sample_generations": "how often sample replies are shown",
    "full_determinism": "transformers' switches for it",
    "torch_empty_cache_steps": "releases cached device memory",
    **dict.fromkeys(("tf32", "ddp_backend", "ddp_timeout", "local_rank"), "transformers' own start of the process"),
}
"""Fields that the trainer, or transformers on its behalf, acts on."""

FILLED = (
    "world_size",
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
)
"""Fields that the trainer fills in; another value than the one that follows from the others is an error."""

SCRIPT = ("sft_model_path", "reward_model_path", "dataset_num_proc", "do_train", "do_eval", "do_predict")
"""Fields that scripts read for themselves."""

REFUSED: dict[str, str] = {
    "fp16": "float16 needs its losses scaled; use bf16=True",
    "fp16_full_eval": "evaluation computes as training does; use bf16=True",
    "bf16_full_eval": "evaluation computes as training does; use bf16=True",
    "torch_compile": "the loop is not compiled",
    "torch_compile_backend": "the loop is not compiled",
    "torch_compile_mode": "the loop is not compiled",
    "use_liger_kernel": "logits are already computed in pieces",
    "liger_kernel_config": "logits are already computed in pieces",
    "optim_target_modules": "optimizers bound to layers are not supported; pass one as optimizers=(optimizer, None)",
    "label_smoothing_factor": "PPO has no labels",
    "neftune_noise_alpha": "noise in the embeddings would make the ratio differ from 1 before any update",
    "auto_find_batch_size": "lower per_device_train_batch_size and raise gradient_accumulation_steps",
    "gradient_checkpointing_kwargs": "layers recompute with use_reentrant=False and nothing else",
    "activation_checkpointing_kwargs": "layers recompute with use_reentrant=False and nothing else",
    "enable_jit_checkpoint": "use save_steps",
    "train_sampling_strategy": "rows come in random order",
    "accelerator_config": "batches are split by processes, and nothing else of it applies",
    "parallelism_config": "processes share the data only (accelerate launch)",
    "fsdp": "processes share the data only (accelerate launch); use a LoRA adapter for large models",
    "fsdp_config": "processes share the data only (accelerate launch); use a LoRA adapter for large models",
    "deepspeed": "processes share the data only (accelerate launch); use a LoRA adapter for large models",
    "debug": "transformers' debugging hooks are those of its own loop",
}
"""Fields that must keep their defaults, and why or what to use instead."""

WITHOUT_EFFECT: dict[str, str] = {
    "average_tokens_across_devices": "means are always over the tokens of all processes",
    "use_cache": "sampling uses the cache, updates do not",
    "logging_nan_inf_filter": "a number that is not finite ends the run with an error",
    "include_num_input_tokens_seen": "the log's tokens column counts sampled tokens",
    "prediction_loss_only": "evaluation has no loss",
    "eval_do_concat_batches": "evaluation has no predictions to join",
    "eval_use_gather_object": "evaluation has no predictions to join",
    "eval_accumulation_steps": "evaluation has no predictions to join",
    "include_for_metrics": "evaluation's measures are fixed",
    "batch_eval_metrics": "evaluation's measures are fixed",
    "save_on_each_node": "the first process saves",
    "ignore_data_skip": "the order of rows follows from seed and step, nothing is skipped",
    "data_seed": "the order of rows follows from seed",
    "dataloader_drop_last": "rows wrap around: every batch is whole",
    "dataloader_num_workers": "rows are read where they are used",
    "dataloader_pin_memory": "rows are read where they are used",
    "dataloader_persistent_workers": "rows are read where they are used",
    "dataloader_prefetch_factor": "rows are read where they are used",
    "dataloader_multiprocessing_context": "rows are read where they are used",
    "dataloader_in_order": "rows are read where they are used",
    "remove_unused_columns": "further columns go to reward functions",
    "label_names": "PPO has no labels",
    "length_column_name": "rows come in random order",
    "ddp_find_unused_parameters": "gradients are added up without DDP's wrapper",
    "ddp_bucket_cap_mb": "gradients are added up without DDP's wrapper",
    "ddp_broadcast_buffers": "gradients are added up without DDP's wrapper",
    "ddp_static_graph": "gradients are added up without DDP's wrapper",
    "skip_memory_metrics": "memory/peak is always logged",
    "ds3_gather_for_generation": "there is no DeepSpeed",
}
"""Fields that have nothing to act on; set, they are named in a warning, with the reason."""

_SET_BY_TRANSFORMERS = {"use_cpu": ("dataloader_pin_memory",)}
_ALLOWED: dict[str, Any] = {name: {"use_reentrant": False} for name in REFUSED if name.endswith("checkpointing_kwargs")}
_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def check(args: Any) -> None:
    """Raise ``UsageError`` naming every refused field that is set; warn once of all that have no effect."""
    refused = [f"{name}: {REFUSED[name]}" for name in set_fields(args) if name in REFUSED]
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) in _SCHEDULES:
        refused.append("lr_scheduler_type: the schedule may not depend on a measure")
    if args.save_only_model and args.load_best_model_at_end:
        refused.append("save_only_model: load_best_model_at_end needs whole checkpoints")
    if refused:
        lines = "\n".join(f"  {line}" for line in refused)
        raise UsageError(f"not supported by {type(args).__name__} here:\n{lines}", "Leave these at their defaults.")
    idle = [f"{name} ({WITHOUT_EFFECT[name]})" for name in set_fields(args) if name in WITHOUT_EFFECT]
    idle += [f"{name} (not known to this version of safebench)" for name in set_fields(args) if not known(name)]
    if idle:
        warnings.warn(f"without effect here: {'; '.join(idle)}", UserWarning, stacklevel=4)


def known(name: str) -> bool:
    """Say whether a field is one of those above, or one of SAFE's."""
    tables = (MAPPED, ACTED_ON, FILLED, SCRIPT, REFUSED, WITHOUT_EFFECT)
    return any(name in table for table in tables)


def set_fields(args: Any) -> list[str]:
    """Return the fields whose value is not the default; what transformers itself derives does not count."""
    derived = {name for cause, names in _SET_BY_TRANSFORMERS.items() if getattr(args, cause, None) for name in names}
    return [
        field.name
        for field in dataclasses.fields(args)
        if field.name not in derived
        and not hasattr(field.metadata.get("help"), "key")
        and not _same(field, getattr(args, field.name))
    ]


def _same(field: dataclasses.Field[Any], value: Any) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value == default or (not value and not default) or value == _ALLOWED.get(field.name):
        return True
    if field.name == "include_num_input_tokens_seen":
        return str(value) == str(default)
    # transformers makes the default, None, into an object of defaults.
    return field.name == "accelerator_config" and default is None and bool(value == type(value)())
