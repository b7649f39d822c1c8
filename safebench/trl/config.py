"""Configurations of the drop-in trainers: TRL 1.12.0's fields and defaults, and the settings that they determine.

No field is silently ignored. A refused field that is set raises an error that names it. One warning names the fields
that have no effect and the fields that this file does not know.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from safebench import config
from safebench.config.schema import Settings
from safebench.errors import UsageError


class Help(str):
    """A field's help text; its attribute ``key`` is the dotted key of the setting that the field stands for."""

    key: str

    def __new__(cls, text: str, key: str) -> Help:
        """Return the text, with the dotted key of the setting."""
        made = super().__new__(cls, text)
        made.key = key
        return made


def _ours(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PPOConfig(TrainingArguments):  # type: ignore[misc]
    """Arguments of ``PPOTrainer``: TRL 1.12.0's fields with TRL's defaults, on transformers' ``TrainingArguments``.

    A batch is ``per_device_train_batch_size`` x ``gradient_accumulation_steps`` x processes replies; each pass over it
    makes ``num_mini_batches`` updates. ``safebench/trl/config.py`` lists what every field does here. If ``bf16`` is not
    given, it is on where bfloat16 can be computed; where it cannot, a warning says that float32 is used.
    """

    learning_rate: float = _ours(3e-6, "Peak learning rate.")
    logging_steps: float = _ours(10, "Updates between two log entries; below 1 a share of the run.")
    gradient_checkpointing: bool = _ours(True, "Recompute activations in the backward pass instead of keeping them.")
    bf16: bool | None = _ours(None, "Compute in bfloat16, weights in float32; on unless fp16, where the device can.")
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further parameters of the schedule, as JSON."}
    )
    use_liger_kernel: bool = _ours(False, "Not supported.")
    torch_empty_cache_steps: int | None = _ours(None, "Updates between two releases of cached device memory.")

    dataset_num_proc: int | None = _ours(None, "For the script: processes that prepare the data set.")
    num_mini_batches: int = _ours(1, "Updates per pass over a batch.")
    total_episodes: int | None = _ours(None, "Replies to sample in all; num_train_epochs x prompts when not given.")
    local_rollout_forward_batch_size: int = _ours(64, "Rows sampled at once on each process.")
    num_sample_generations: int = _ours(10, "How often during the run sample replies are shown; 0 for never.")
    response_length: int = _ours(53, "Most tokens of a reply.")
    stop_token: Literal["eos"] | None = _ours(None, "eos: a reply ends at the tokenizer's end token.")
    stop_token_id: int | None = _ours(None, "Id of the token that ends a reply, in place of stop_token.")
    temperature: float = _ours(0.7, "Sampling temperature; log-probabilities and KL are taken under it too.")
    missing_eos_penalty: float | None = _ours(None, "Taken off the score of a reply without its end token; positive.")
    sft_model_path: str = _ours("EleutherAI/pythia-160m", "For the script: where the policy comes from.")
    world_size: int | None = _ours(None, "Filled in: processes.")
    num_total_batches: int | None = _ours(None, "Filled in: batches of the run.")
    micro_batch_size: int | None = _ours(None, "Filled in: rows of a forward pass, all processes.")
    local_batch_size: int | None = _ours(None, "Filled in: replies per batch and process.")
    batch_size: int | None = _ours(None, "Filled in: replies per batch.")
    local_mini_batch_size: int | None = _ours(None, "Filled in: replies per update and process.")
    mini_batch_size: int | None = _ours(None, "Filled in: replies per update.")
    push_to_hub: bool = _ours(False, "Upload the model with every checkpoint.")
    reward_model_path: str = _ours("EleutherAI/pythia-160m", "For the script: where the reward model comes from.")
    model_adapter_name: str | None = _ours(None, "The policy's adapter that is trained.")
    ref_adapter_name: str | None = _ours(None, "The policy's adapter that is the reference.")
    num_ppo_epochs: int = _ours(4, "Passes over each batch.")
    whiten_rewards: bool = _ours(False, "Scale the token rewards of a batch to unit variance.")
    kl_coef: float = _ours(0.05, "Weight of the sampled KL that is taken off each token's reward.")
    kl_estimator: Literal["k1", "k3"] = _ours("k1", "Estimator of that KL.")
    cliprange: float = _ours(0.2, "How far the ratio may leave 1.")
    vf_coef: float = _ours(0.1, "Weight of the value loss.")
    cliprange_value: float = _ours(0.2, "How far a value may leave the one before the update.")
    gamma: float = _ours(1.0, "Discount per token.")
    lam: float = _ours(0.95, "Lambda of generalised advantage estimation.")
    ds3_gather_for_generation: bool = _ours(True, "DeepSpeed ZeRO 3 only, which is not supported.")

    def __post_init__(self) -> None:
        """Settle the precision, and copy the checkpointing fields to this transformers version's names for them."""
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _has_bf16(self.use_cpu)
        for new, old in (
            ("activation_checkpointing", self.gradient_checkpointing),
            ("activation_checkpointing_kwargs", self.gradient_checkpointing_kwargs),
        ):
            if getattr(self, new, old) is None:
                setattr(self, new, old)
        super().__post_init__()


def _has_bf16(use_cpu: bool) -> bool:
    if use_cpu or is_torch_bf16_gpu_available():
        return True
    warnings.warn(
        "bf16 was left to its default, and no device here computes in bfloat16: float32 is used. "
        "bf16=False says so; use_cpu=True with bf16=True computes in bfloat16 on the CPU.",
        UserWarning,
        stacklevel=4,
    )
    return False


@functools.cache
def safe_settings() -> BaseModel:
    """Return the settings of the experiment ``safe`` (experiments/safe.yaml), the one source of SAFE's defaults."""
    return config.resolve("safe")


def _setting(key: str) -> Any:
    """Return the value that ``safe`` has at a dotted key; None below a section that is off."""
    value: Any = safe_settings()
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _safe(key: str, text: str) -> Any:
    return field(default=_setting(key), metadata={"help": Help(text, key)})


@dataclass
class SAFEConfig(PPOConfig):
    """Arguments of ``SAFETrainer``: those of ``PPOConfig`` and of SAFE (Maity 2026, arXiv 2602.04651), with defaults.

    The defaults are those of the experiment ``safe`` (experiments/safe.yaml); sizes, temperature and learning rate
    keep TRL's defaults. SAFE controls the KL in the loss, so ``kl_coef`` is 0. KL and entropy are in nats per token.
    """

    kl_coef: float = _safe("reward.kl_coefficient", "Weight of the sampled KL in the reward; SAFE has none.")
    vf_coef: float = _safe("loss.value_coefficient", "Weight of the value loss.")
    cliprange: float = _safe("loss.clip", "How far the ratio may leave 1.")
    cliprange_value: float = _safe("loss.value_clip", "How far a value may leave the one before the update.")
    gamma: float = _safe("advantage.gamma", "Discount per token.")
    lam: float = _safe("advantage.lam", "Lambda of generalised advantage estimation.")
    max_grad_norm: float = _safe("update.max_grad_norm", "Norm that the policy's gradient is clipped to.")

    normalise_rewards: bool = _safe("reward.normalise", "Standardise rewards by all seen so far (equation 15).")
    critic_heads: Literal["single", "double"] = _safe("critic.heads", "One value head, or two (equations 1, 2).")
    critic_head: Literal["linear", "mlp"] = _safe("critic.head", "Form of a value head (equation 2).")
    critic_layer_norm: bool = _safe("critic.layer_norm", "Normalise the hidden state first (equation 2).")
    critic_detach: bool = _safe("critic.detach", "Keep the value loss from moving the policy.")
    critic_softmin_alpha: float = _safe("critic.softmin_alpha", "Softness of the heads' minimum (equation 1).")
    critic_target_decay: float | None = _safe("critic.target_decay", "Kept of the target critic (equation 14).")
    critic_learning_rate: float | None = _safe("update.critic_learning_rate", "The policy's when not given.")
    critic_max_grad_norm: float | None = _safe("update.critic_max_grad_norm", "Clips the critic's gradient.")
    value_huber: float | None = _safe("loss.value_huber", "Delta of the Huber loss (equation 3).")
    value_combine: Literal["max", "mean"] = _safe("loss.value_combine", "Plain and clipped value error (equation 3).")
    entropy_coef: float = _safe("loss.entropy_coefficient", "Weight of the entropy bonus (equation 11).")

    penalty_coef: float = _safe("penalty.coefficient", "Weight of the KL penalty (equation 10).")
    penalty_asymmetric: bool = _safe("penalty.asymmetric", "Punish too much KL only (equation 10).")
    kl_threshold: float = _safe("penalty.base_threshold", "KL that is free, before PID and phase (equation 6).")
    kl_threshold_min: float = _safe("penalty.min_threshold", "Least threshold (equation 6).")
    kl_threshold_max: float = _safe("penalty.max_threshold", "Greatest threshold (equation 6).")
    kl_short_decay: float = _safe("penalty.short_decay", "Decay of the short KL average (equation 5).")
    kl_long_decay: float = _safe("penalty.long_decay", "Decay of the long KL average (equation 5).")
    entropy_gate: bool = _safe("penalty.gate", "Punish more where entropy is low (equation 9).")
    entropy_floor: float = _safe("penalty.entropy_floor", "Entropy at which the gate is 1 (equation 9).")
    gate_floor: float = _safe("penalty.gate_floor", "Least gate (equation 9).")
    gate_offset: float = _safe("penalty.gate_offset", "Added to the entropy in the gate (equation 9).")
    gate_most: float | None = _safe("penalty.gate_most", "Greatest gate.")
    pid: bool = _safe("penalty.pid.enabled", "Move the threshold by the reward's velocity (equation 7).")
    pid_proportional: float = _safe("penalty.pid.proportional", "Proportional gain (equation 7).")
    pid_integral: float = _safe("penalty.pid.integral", "Integral gain (equation 7).")
    pid_derivative: float = _safe("penalty.pid.derivative", "Derivative gain (equation 7).")
    pid_target_velocity: float = _safe("penalty.pid.target_velocity", "Velocity that is asked for (equation 7).")
    pid_integral_limit: float = _safe("penalty.pid.integral_limit", "Bound of the integral (equation 7).")
    pid_smoothing: float = _safe("penalty.pid.smoothing", "Decay of the reward's average (equation 7).")
    phases: bool = _safe("penalty.phase.enabled", "Scale the threshold by the phase of training (equation 8).")
    phase_rule: Literal["published", "standardised"] = _safe("penalty.phase.rule", "How a rise is judged (equation 8).")
    phase_window: int = _safe("penalty.phase.window", "Batches that are compared (equation 8).")
    phase_rise: float = _safe("penalty.phase.rise", "Rise of a climbing reward, published rule (equation 8).")
    phase_calm: float = _safe("penalty.phase.calm", "Deviation of a converged one, published rule (equation 8).")
    phase_good: float = _safe("penalty.phase.good", "Reward of a converged one (equation 8).")
    phase_sure: float = _safe("penalty.phase.sure", "Standard errors that make a rise, standardised rule.")
    phase_warmup: float = _safe("penalty.phase.warmup", "Factor while warming up (equation 8).")
    phase_climbing: float = _safe("penalty.phase.climbing", "Factor while the reward rises (equation 8).")
    phase_converged: float = _safe("penalty.phase.converged", "Factor at a good, calm reward (equation 8).")
    phase_plateau: float = _safe("penalty.phase.plateau", "Factor otherwise (equation 8).")
    momentum_coef: float | None = _safe(
        "penalty.momentum.coefficient", "Weight of the momentum term, without gate, PID and phases (equation 12)."
    )
    preview_ceiling: float | None = _safe("update.preview.ceiling", "KL that no step may exceed (equation 13).")


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
"""Fields whose value is copied to a setting unchanged."""

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
"""Fields that become settings of the loop (``settings_of``)."""

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
"""Fields that the trainer fills in; a given value that contradicts the other fields is an error."""

SCRIPT = ("sft_model_path", "reward_model_path", "dataset_num_proc", "do_train", "do_eval", "do_predict")
"""Fields that only scripts read."""

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
"""Fields that must keep their defaults, each with the reason or the alternative."""

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
"""Fields that have no effect here; a warning names those that are set, with the reason."""

_SET_BY_TRANSFORMERS = {"use_cpu": ("dataloader_pin_memory",)}
_ALLOWED: dict[str, Any] = {name: {"use_reentrant": False} for name in REFUSED if name.endswith("checkpointing_kwargs")}
_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def check_fields(args: Any) -> None:
    """Raise ``UsageError`` naming every refused field that is set; warn once about all fields without effect."""
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
    """Return whether a field is in one of the tables above."""
    tables = (MAPPED, ACTED_ON, FILLED, SCRIPT, REFUSED, WITHOUT_EFFECT)
    return any(name in table for table in tables)


def set_fields(args: Any) -> list[str]:
    """Return the fields whose value is not the default, without those that transformers itself derives."""
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
    # transformers replaces the default, None, by an object of defaults.
    return field.name == "accelerator_config" and default is None and bool(value == type(value)())


def fill_sizes(args: Any, rows: int, processes: int) -> None:
    """Fill in the sizes that follow from other fields: replies per batch, update and pass, and batches of the run.

    batch = per_device_train_batch_size x gradient_accumulation_steps x processes. The number of batches is
    ``max_steps`` if that is positive, else ``total_episodes`` (or ``num_train_epochs`` x ``rows``) over the batch,
    rounded up. Raises ``UsageError`` if mini-batches do not divide the batch or a given size contradicts the others.
    """
    local = args.per_device_train_batch_size * args.gradient_accumulation_steps
    batch, parts = local * processes, args.num_mini_batches
    if parts < 1 or local % parts:
        raise UsageError(
            f"num_mini_batches ({parts}) must divide the {local} replies per batch and process "
            "(per_device_train_batch_size x gradient_accumulation_steps)"
        )
    if args.max_steps > 0:
        args.total_episodes = args.max_steps * batch
    elif args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * rows)
    found = {
        "world_size": processes,
        "num_total_batches": math.ceil(args.total_episodes / batch),
        "micro_batch_size": args.per_device_train_batch_size * processes,
        "local_batch_size": local,
        "batch_size": batch,
        "local_mini_batch_size": local // parts,
        "mini_batch_size": batch // parts,
    }
    for name in FILLED:
        given = getattr(args, name)
        if given not in (None, found[name]):
            raise UsageError(
                f"{name} is {given}, but it follows from the other sizes, and is {found[name]}", f"Leave {name} out."
            )
        setattr(args, name, found[name])
    if args.num_total_batches < 1:
        raise UsageError(f"total_episodes is {args.total_episodes}: nothing to do")


def settings_of(args: Any, *, own_value_model: bool, stops: bool) -> Settings:
    """Return the loop's settings for ``args``, a ``PPOConfig`` or ``SAFEConfig`` after ``fill_sizes``.

    ``own_value_model``: the critic has a body of its own, that of the given value model. ``stops``: a token ends
    replies, and the loop itself can tell which replies lack it. Raises ``UsageError`` for values out of range.
    """
    tree = _base(args)
    limit = args.max_grad_norm or None
    _lay(tree, "critic.body", "separate" if own_value_model else "shared")
    _lay(tree, "update.critic_max_grad_norm", limit)
    for name, key in _keys(args).items():
        _lay(tree, key, getattr(args, name))
    for key, value in _of_sizes(args).items():
        _lay(tree, key, value)
    _lay(tree, "update.max_grad_norm", limit)
    _lay(tree, "reward.missing_eos_penalty", (args.missing_eos_penalty or 0.0) if stops else 0.0)
    _drop_unused(tree)
    try:
        return Settings.model_validate(tree)
    except ValidationError as fault:
        lines = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in fault.errors())
        raise UsageError(f"{type(args).__name__} holds what the loop cannot use:\n{lines}") from fault


def is_safe(args: Any) -> bool:
    """Return whether the configuration has SAFE's fields."""
    return bool(_keys_of_safe(args))


def _base(args: Any) -> dict[str, Any]:
    if is_safe(args):
        tree = config.resolve("safe").model_dump(mode="json")
        return {**tree, "algorithm": "safebench.trl.logs:WatchedSAFE"}
    return {"experiment": "drop-in", "algorithm": "safebench.trl.logs:WatchedPPO"}


def _of_sizes(args: Any) -> dict[str, Any]:
    """Return the settings that are not one field's plain value: sizes, the machine, stand-ins for given objects."""
    return {
        "experiment": "drop-in",
        "seed": args.seed,
        "model.name": "given",
        "model.lora": None,
        "model.mixed_precision": bool(args.bf16),
        "model.gradient_checkpointing": bool(args.gradient_checkpointing),
        "reward.name": "given",
        "reward.judge": None,
        "prompts.name": "given",
        "prompts.max_tokens": 2**31,
        "rollout.batch": args.batch_size,
        "rollout.reply_tokens": args.response_length,
        "rollout.temperature": args.temperature,
        "rollout.chunk": args.local_rollout_forward_batch_size,
        "update.steps": args.num_total_batches,
        "update.epochs": args.num_ppo_epochs,
        "update.minibatches": args.num_mini_batches,
        "update.microbatch": args.per_device_train_batch_size,
        "update.learning_rate": args.learning_rate,
        "update.schedule": "constant",
        "recording.gradient_norms_every": None,
        "compute.device": "cpu" if args.use_cpu else "auto",
        "compute.threads": None,
    }


def _keys(args: Any) -> dict[str, str]:
    return PLAIN | _keys_of_safe(args)


def _keys_of_safe(args: Any) -> dict[str, str]:
    texts = {field.name: field.metadata.get("help") for field in dataclasses.fields(args)}
    return {name: text.key for name, text in texts.items() if text is not None and hasattr(text, "key")}


def _lay(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


def _drop_unused(tree: dict[str, Any]) -> None:
    """Turn off each section whose one field was left at None."""
    for section, part, key in (("penalty", "momentum", "coefficient"), ("update", "preview", "ceiling")):
        inner = tree.get(section)
        if inner and isinstance(inner.get(part), dict) and inner[part].get(key) is None:
            inner[part] = None
