"""The configurations of the drop-in trainers: TRL 1.12.0's fields and defaults, and SAFE's parts beside them."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from safebench import config


class Help(str):
    """A field's help text, which also knows the setting that the field stands for."""

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
    makes ``num_mini_batches`` updates. What every field does here is in ``safebench/trl/fields.py``. ``bf16`` left
    alone is on where bfloat16 can be computed; where it cannot, a warning says that float32 is used.
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
        """Settle the precision, and pass on checkpointing under the name that this transformers knows it by."""
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
    """Return the value that ``safe`` has under a dotted key; None beneath a section that is off."""
    value: Any = safe_settings()
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _safe(key: str, text: str) -> Any:
    return field(default=_setting(key), metadata={"help": Help(text, key)})


@dataclass
class SAFEConfig(PPOConfig):
    """Arguments of ``SAFETrainer``: ``PPOConfig``'s, and SAFE's (Maity 2026, arXiv 2602.04651) with their defaults.

    The defaults are those of the experiment ``safe`` (experiments/safe.yaml); sizes, temperature and learning rate
    stay TRL's. SAFE has its KL control in the loss: ``kl_coef`` is 0. KL and entropy are in nats per token.
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
