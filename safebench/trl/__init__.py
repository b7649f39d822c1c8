"""Exports TRL's PPO trainer under TRL's names, on this package's loop, and SAFE with the same interface.

A script written for TRL 1.12.0's ``PPOTrainer`` imports from here instead. TRL itself is never imported.
"""

from safebench.trl.config import PPOConfig, SAFEConfig
from safebench.trl.scripts import (
    ModelConfig,
    ScriptArguments,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)
from safebench.trl.trainer import PPOTrainer, SAFETrainer

__all__ = [
    "ModelConfig",
    "PPOConfig",
    "PPOTrainer",
    "SAFEConfig",
    "SAFETrainer",
    "ScriptArguments",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
]
