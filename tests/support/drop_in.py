"""Drop-in trainers of tiny random models, by TRL's constructor."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, Qwen2ForSequenceClassification

from safebench.trl import PPOConfig, PPOTrainer, SAFEConfig, SAFETrainer
from tests.support.tiny import PROMPTS, tiny_policy, tiny_tokenizer

BATCH, REPLY = 4, 6
CHAT = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def policy_model(seed: int = 0) -> Qwen2ForCausalLM:
    """A policy without adapter."""
    return tiny_policy(seed=seed).model.unload().requires_grad_(True)


def classifier(seed: int = 3, labels: int = 1) -> Qwen2ForSequenceClassification:
    """A reward or value model of the policy's shape."""
    config = copy.deepcopy(policy_model().config)
    config.num_labels = labels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForSequenceClassification(config)


def lora(**more: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **more)


def rows(count: int = 16) -> Dataset:
    """Prompts of several lengths, as ids."""
    tokenizer = tiny_tokenizer()
    return Dataset.from_list([{"input_ids": tokenizer(PROMPTS[i % len(PROMPTS)])["input_ids"]} for i in range(count)])


def letters(prompts: list[str], replies: list[str]) -> list[float]:
    """Reward early letters; all replies differ somewhat."""
    return [sum(ord("z") - ord(w.lower()) for w in reply.split()) / 50 for reply in replies]


def arguments(folder: Path, kind: type[PPOConfig] = PPOConfig, **fields: Any) -> PPOConfig:
    """A configuration for four batches of four replies, two passes each, on the CPU in float32."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": BATCH,
        "total_episodes": 4 * BATCH,
        "num_ppo_epochs": 2,
        "response_length": REPLY,
        "learning_rate": 1e-2,
        "temperature": 1.0,
        "stop_token": "eos",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "num_sample_generations": 0,
        "seed": 7,
    }
    return kind(**{**given, **fields})


def trainer(folder: Path, *, safe: bool = False, config: dict[str, Any] | None = None, **parts: Any) -> PPOTrainer:
    """A trainer; ``parts`` are the constructor's arguments, ``config`` the configuration's fields."""
    made: dict[str, Any] = {
        "processing_class": tiny_tokenizer(),
        "model": None,
        "ref_model": None,
        "reward_model": letters,
        "value_model": None,
        "train_dataset": None,
        **parts,
    }
    made["model"] = made["model"] or policy_model()
    made["train_dataset"] = made["train_dataset"] if made["train_dataset"] is not None else rows()
    make = SAFETrainer if safe else PPOTrainer
    made.setdefault("args", arguments(folder, SAFEConfig if safe else PPOConfig, **(config or {})))
    return make(**made)


@contextlib.contextmanager
def quietly() -> Iterator[io.StringIO]:
    """Keep what is printed off the screen, and return it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        yield said


def entries(made: PPOTrainer) -> list[dict[str, Any]]:
    """The log entries of updates."""
    return [entry for entry in made.state.log_history if "objective/kl" in entry]


def lasting(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without what no two runs share: time and memory."""
    return {k: v for k, v in entry.items() if k != "eps" and not k.startswith(("time/", "speed/", "memory/"))}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Tell whether all weights are equal, bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def adapted(seed: int = 0, moved: float = 0.3, trainable: bool = True) -> PeftModel:
    """A policy that came with a trained adapter."""
    model: PeftModel = tiny_policy(seed=seed, moved=moved).model
    return model.requires_grad_(False) if not trainable else model


def finite(entry: dict[str, Any]) -> bool:
    return all(math.isfinite(v) for v in entry.values() if isinstance(v, (int, float)))
