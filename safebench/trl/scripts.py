"""Arguments of models and data sets, which TRL's two PPO example scripts import beside trainer and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from safebench.errors import UsageError


def _help(text: str, choices: Sequence[str] | None = None) -> dict[str, Any]:
    return {"help": text} if choices is None else {"help": text, "choices": list(choices)}


@dataclass
class ScriptArguments:
    """Arguments that name the data set of a script: TRL 1.12.0's fields and defaults."""

    dataset_name: str | None = field(default=None, metadata=_help("Name or path of the data set."))
    dataset_config: str | None = field(default=None, metadata=_help("Which configuration of it."))
    dataset_train_split: str = field(default="train", metadata=_help("Split to train on."))
    dataset_test_split: str = field(default="test", metadata=_help("Split to evaluate on."))
    dataset_streaming: bool = field(default=False, metadata=_help("For the script: read it as a stream."))
    ignore_bias_buffers: bool = field(
        default=False, metadata=_help("Without effect: gradients are added up without DDP's wrapper.")
    )


@dataclass
class ModelConfig:
    """Arguments that name the model and the adapter of a script: TRL 1.12.0's fields and defaults.

    ``trust_remote_code``, which TRL dropped, is kept for older scripts.
    """

    model_name_or_path: str | None = field(default=None, metadata=_help("Name or path of the model."))
    model_revision: str = field(default="main", metadata=_help("Branch, tag or commit of it."))
    dtype: str | None = field(
        default="float32", metadata=_help("Type of its weights.", ("auto", "bfloat16", "float16", "float32"))
    )
    attn_implementation: str | None = field(default=None, metadata=_help("Implementation of attention."))
    use_peft: bool = field(default=False, metadata=_help("Train a LoRA adapter instead of all weights."))
    lora_r: int = field(default=16, metadata=_help("Rank of the adapter."))
    lora_alpha: int = field(default=32, metadata=_help("Scale of the adapter: alpha over rank."))
    lora_dropout: float = field(
        default=0.05, metadata=_help("Dropout of the adapter; the trainer switches it off, as TRL's does.")
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata=_help("Layers with an adapter; peft's choice when not given.")
    )
    lora_target_parameters: list[str] | None = field(default=None, metadata=_help("Parameters with an adapter."))
    lora_modules_to_save: list[str] | None = field(default=None, metadata=_help("Layers that are trained as a whole."))
    lora_task_type: str = field(
        default="CAUSAL_LM", metadata=_help("CAUSAL_LM for a policy, SEQ_CLS for a reward model.")
    )
    use_rslora: bool = field(
        default=False, metadata=_help("Scale by alpha over the root of the rank (Kalajdzievski 2023).")
    )
    use_dora: bool = field(
        default=False, metadata=_help("Decompose weights into length and direction (Liu et al. 2024).")
    )
    load_in_8bit: bool = field(default=False, metadata=_help("Quantise to 8 bits; with an adapter only."))
    load_in_4bit: bool = field(default=False, metadata=_help("Quantise to 4 bits; with an adapter only."))
    bnb_4bit_quant_type: str = field(default="nf4", metadata=_help("Form of 4-bit numbers.", ("fp4", "nf4")))
    use_bnb_nested_quant: bool = field(default=False, metadata=_help("Quantise the quantisation's constants too."))
    bnb_4bit_quant_storage: str | None = field(default=None, metadata=_help("Type that 4-bit weights are stored as."))
    trust_remote_code: bool = field(default=False, metadata=_help("Run the model's own code."))

    def __post_init__(self) -> None:
        """Refuse two quantisations at once; unpack a single target module from its list: it may be a pattern."""
        if self.load_in_8bit and self.load_in_4bit:
            raise UsageError("both load_in_8bit and load_in_4bit are set", "Set one of the two.")
        targets: Any = self.lora_target_modules
        if isinstance(targets, list) and len(targets) == 1:
            self.lora_target_modules = targets[0]

    @property
    def torch_dtype(self) -> str | None:
        """The type of the weights, under its older name."""
        return self.dtype


def get_peft_config(model_args: ModelConfig) -> LoraConfig | None:
    """Return the adapter's configuration, or None without ``use_peft``."""
    if not model_args.use_peft:
        return None
    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        target_parameters=model_args.lora_target_parameters,
        modules_to_save=model_args.lora_modules_to_save,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        bias="none",
    )


def get_quantization_config(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """Return the requested quantisation, or None without one; it needs the package bitsandbytes."""
    if model_args.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if not model_args.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=model_args.dtype,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
        bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
    )


def get_kbit_device_map() -> dict[str, int] | None:
    """Return the device map that puts a quantised model on this process's own GPU, or None without a GPU."""
    state = PartialState()
    return {"": int(state.local_process_index)} if state.device.type in ("cuda", "xpu") else None
