"""One trainer on one model in a process of its own: time per update and peak memory, as one line of JSON.

    python examples/bench/arm.py trl qwen2-50m

``trl`` is TRL's PPOTrainer with the value model that it needs, ``ours`` the drop-in without one (the critic sits on the
policy's own states), ``ours-own`` the drop-in with TRL's value model. All else is the same argument to both.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from models import SHAPES, Shape, load, prompts
from peft import LoraConfig
from transformers import TrainerCallback

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MIB = 2**20


class Stopwatch(TrainerCallback):
    """Wall and processor seconds of each update, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when the first update starts."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when an update is done."""
        self.marks.append((time.perf_counter(), time.process_time()))


def measure(arm: str, name: str) -> dict[str, Any]:
    """Train for the shape's updates and return seconds and MiB.

    ``above`` is the peak of resident memory during training above what lay there when the models were loaded.
    """
    shape = SHAPES[name]
    trainer_class, config_class = _classes(arm)
    given = load(name, own_value_model=arm != "ours")
    sampled = _count_tokens(given["reward_model"], shape)
    rows = Dataset.from_dict({"input_ids": prompts(name, given["processing_class"])})
    watch = Stopwatch()
    loaded = psutil.Process().memory_info().rss / MIB
    _forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            args=_config(config_class, shape, folder),
            ref_model=None,
            train_dataset=rows,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"),
            callbacks=[watch],
            **given,
        )
        sampled.clear()  # the trainer tries its reward before it trains
        trainer.train()
    peak = _peak()
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(watch.marks, watch.marks[1:], strict=False)][1:]
    log = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    return {
        "seconds": [wall for wall, _ in spans],
        "processor": [processor for _, processor in spans],
        "loaded": loaded,
        "peak": peak,
        "above": peak - loaded,
        "updates": len(log),
        "replies": int(log[-1]["episode"]),
        "sampled": sampled,
        "parameters": sum(p.numel() for name, p in given["model"].named_parameters() if "lora_" not in name),
    }


def _count_tokens(reward_model: Any, shape: Shape) -> list[int]:
    """Return a list that gets the number of reply tokens of each batch that the reward model reads."""
    counts: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        counts.append(int(kwargs["attention_mask"].sum()) - shape.batch * shape.prompt_tokens)

    getattr(reward_model, reward_model.base_model_prefix).register_forward_pre_hook(count, with_kwargs=True)
    return counts


def _classes(arm: str) -> tuple[Any, Any]:
    if arm == "trl":
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    else:
        from safebench.trl import PPOConfig, PPOTrainer
    return PPOTrainer, PPOConfig


def _config(config_class: Any, shape: Shape, folder: str) -> Any:
    return config_class(
        output_dir=folder,
        per_device_train_batch_size=shape.batch,
        total_episodes=shape.batch * shape.updates,
        response_length=shape.reply_tokens,
        num_ppo_epochs=shape.epochs,
        temperature=1.0,
        learning_rate=1e-4,
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )


def _forget_peak() -> None:
    """Let Linux measure the peak from here on; elsewhere it is the process's, loading included."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> float:
    """Return the peak of resident memory in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
