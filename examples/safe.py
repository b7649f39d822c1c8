"""SAFE with a reward function, on conversations: what the drop-in takes beyond TRL's PPOTrainer.

    python examples/safe.py                                   # two minutes on a laptop
    python examples/safe.py --penalty_coefficient 1.0

No reward model and no value model: the reward is a Python function, the critic sits on the policy's own states, and
the reference is the policy with its adapter off. The data set holds messages; the chat template does the rest.
"""

from __future__ import annotations

import json

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from safebench import registry
from safebench.trl import SAFEConfig, SAFETrainer

Messages = list[dict[str, str]]

LORA = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    task_type="CAUSAL_LM",
)
DEFAULTS = {
    "output_dir": "build/examples/safe",
    "total_episodes": 1280,
    "per_device_train_batch_size": 32,
    "response_length": 24,
    "stop_token": "eos",
    "temperature": 1.0,
    "learning_rate": 3e-3,
    "num_ppo_epochs": 2,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "num_sample_generations": 0,
    "save_strategy": "no",
    "report_to": ["none"],
}


def curious(prompts: list[Messages], completions: list[Messages], **columns: object) -> list[float]:
    """Reward replies that ask something, in words that the prompt does not have; one number per reply.

    The form is that of TRL's GRPOTrainer: ``columns`` holds the data set's further columns.
    """
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        said = completion[-1]["content"]
        words = said.lower().split()
        heard = set(prompt[-1]["content"].lower().split())
        own = sum(word not in heard for word in set(words)) / max(1, len(words))
        scores.append(own + float(said.rstrip().endswith("?")))
    return scores


def conversations(split: str) -> Dataset:
    """Return the embedded prompts of a split as conversations of one turn."""
    lines = (registry.WORLD / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    turns = [[{"role": "user", "content": row["prompt"]}] for row in rows if row["split"] == split]
    return Dataset.from_dict({"prompt": turns})


def show(trainer: SAFETrainer) -> None:
    """Print reward and KL along the way with the threshold that the controller held, and some replies."""
    print("\nKL, threshold and entropy in nats per token")
    print(f"{'step':>5} {'reward':>8} {'KL':>8} {'threshold':>10} {'penalty':>9} {'entropy':>8}  phase")
    log = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    for entry in log[:: max(1, len(log) // 8)]:
        keys = ("reward/mean", "kl/mean", "controller/threshold", "loss/penalty", "entropy/mean")
        reward, kl, threshold, penalty, entropy = (float(entry[key]) for key in keys)
        print(
            f"{int(entry['step']):5} {reward:8.3f} {kl:8.3f} {threshold:10.3f} {penalty:9.5f} {entropy:8.3f}"
            f"  {entry['controller/phase']}"
        )
    trainer.generate_completions(sampling=True)


def main() -> None:
    """Train, save, show."""
    parser = HfArgumentParser(SAFEConfig)
    parser.set_defaults(**DEFAULTS)
    (args,) = parser.parse_args_into_dataclasses()
    trainer = SAFETrainer(
        args=args,
        processing_class=AutoTokenizer.from_pretrained(registry.WORLD / "policy"),
        model=AutoModelForCausalLM.from_pretrained(registry.WORLD / "policy"),
        ref_model=None,
        reward_model=curious,
        value_model=None,
        train_dataset=conversations("train"),
        eval_dataset=conversations("heldout"),
        peft_config=LORA,
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    show(trainer)


if __name__ == "__main__":
    main()
