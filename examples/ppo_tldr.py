"""PPO with LoRA, gradient accumulation and evaluation: the form of TRL's TL;DR example, on models for any CPU.

    python examples/ppo_tldr.py                               # two minutes on a laptop
    python examples/ppo_tldr.py --lora_r 16 --eval_steps 5

Any field of PPOConfig, ModelConfig and ScriptArguments is an option. Written for TRL 1.12.0 it would read

    from trl import ModelConfig, ScriptArguments, get_peft_config
    from trl.experimental.ppo import PPOConfig, PPOTrainer

and nothing below the imports would be different. Evaluation happens here only: TRL's trainer ignored ``eval_strategy``.
"""

from __future__ import annotations

from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
)

from safebench import registry
from safebench.trl import ModelConfig, PPOConfig, PPOTrainer, ScriptArguments, get_peft_config

LONGEST = 24
"""Tokens of a prompt; rows with longer ones are left out."""
DEFAULTS = {
    "dataset_name": str(registry.WORLD / "prompts.jsonl"),
    "dataset_test_split": "heldout",
    "model_name_or_path": str(registry.WORLD / "policy"),
    "sft_model_path": str(registry.WORLD / "policy"),
    "reward_model_path": str(registry.WORLD / "proxy-body"),
    "use_peft": True,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "output_dir": "build/examples/ppo-tldr",
    "total_episodes": 1280,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "per_device_eval_batch_size": 32,
    "response_length": 24,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "temperature": 1.0,
    "learning_rate": 3e-3,
    "num_ppo_epochs": 2,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "num_sample_generations": 0,
    "save_strategy": "no",
    "report_to": ["none"],
}


def tokenized(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return token ids of the prompts that are not too long, and how long they are."""

    def encode(row: dict[str, str]) -> dict[str, object]:
        turn = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text)["input_ids"]
        return {"input_ids": ids, "lengths": len(ids)}

    return rows.map(encode, remove_columns=rows.column_names).filter(lambda row: row["lengths"] <= LONGEST)


def show(trainer: PPOTrainer) -> None:
    """Print the batches along the way, the evaluations where there are any, and replies to held-out prompts."""
    print(f"\n{'replies':>8} {'score':>8} {'KL [nats/reply]':>16} {'clipped':>8}")
    log = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    for entry in log[:: max(1, len(log) // 8)]:
        score, kl, clipped = (
            float(entry[key]) for key in ("objective/scores", "objective/kl", "policy/clipfrac_avg")
        )
        print(f"{int(entry['episode']):8} {score:8.3f} {kl:16.3f} {clipped:8.3f}")
    for entry in (entry for entry in trainer.state.log_history if "eval_reward" in entry):
        reward, kl = entry["eval_reward"], entry["eval_kl"]
        print(f"step {entry['step']}: held-out reward {reward:.3f}, KL {kl:.3f} nats per token")
    trainer.generate_completions(sampling=True)


def main() -> None:
    """Train, save, show."""
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    parser.set_defaults(**DEFAULTS)
    script_args, training_args, model_args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    reward_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    value_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)
    peft_config = get_peft_config(model_args)
    reference = None if peft_config else AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)

    # One file whose rows name their split.
    rows = load_dataset("json", data_files=script_args.dataset_name, split="train")
    splits = {
        name: tokenized(rows.filter(lambda row, name=name: row["split"] == name), tokenizer)
        for name in (script_args.dataset_train_split, script_args.dataset_test_split)
    }
    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=splits[script_args.dataset_train_split],
        eval_dataset=splits[script_args.dataset_test_split],
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    show(trainer)


if __name__ == "__main__":
    main()
