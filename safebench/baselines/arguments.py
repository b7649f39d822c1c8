"""Arguments that all of TRL's trainers get alike: sizes and schedule of the settings, everything else switched off."""

from __future__ import annotations

from typing import Any

import torch

from safebench.settings import Settings

SHARED_LIMITS: dict[str, Any] = {
    "compute.replicate": 0,
    "model.mixed_precision": False,
    "reward.normalise": False,
    "update.optimizer": "adamw",
    "update.preview": None,
    "loss.entropy_coefficient": 0.0,
    "loss.entropy_over": "reply",
    "loss.kl_coefficient": 0.0,
    "penalty": None,
}
"""What none of the trainers can do, each key with the one value that it may have."""


def shared(settings: Settings, folder: str, device: torch.device) -> dict[str, Any]:
    """Return them by the names of transformers' ``TrainingArguments``; ``folder`` gets nothing."""
    update = settings.update
    return {
        "output_dir": folder,
        "seed": settings.seed,
        "learning_rate": update.learning_rate,
        "lr_scheduler_type": update.schedule,
        "weight_decay": update.weight_decay,
        "optim": "adamw_torch",
        "temperature": settings.rollout.temperature,
        "gradient_checkpointing": settings.model.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": False,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "push_to_hub": False,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
