"""PPO against a reward model, all weights trained: the form of TRL's example ``ppo.py``, on models for any CPU.

    python examples/ppo.py                                    # a minute on a laptop
    python examples/ppo.py --total_episodes 6400 --kl_coef 0.1

Any field of PPOConfig, ModelConfig and ScriptArguments is an option. Written for TRL 1.12.0 it would read

    from trl import ModelConfig, ScriptArguments, get_peft_config
    from trl.experimental.ppo import PPOConfig, PPOTrainer

and nothing below the imports would be different.
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

HELD_OUT = 64
DEFAULTS = {
    # What to train: a 4M chat model, a reward model learned from people's replies, and prompts, all in the package.
    "dataset_name": str(registry.WORLD / "prompts.jsonl"),
    "model_name_or_path": str(registry.WORLD / "policy"),
    "sft_model_path": str(registry.WORLD / "policy"),
    "reward_model_path": str(registry.WORLD / "proxy-body"),
    # How: sizes for minutes, not hours.
    "output_dir": "build/examples/ppo",
    "total_episodes": 1280,
    "per_device_train_batch_size": 32,
    "response_length": 24,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "temperature": 1.0,
    "learning_rate": 3e-4,
    "num_ppo_epochs": 2,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "num_sample_generations": 0,
    "save_strategy": "no",
    "report_to": ["none"],
}


def tokenized(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the rows' prompts as token ids, up to where the reply begins; the trainer pads them."""

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        turn = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return {"input_ids": tokenizer(text)["input_ids"]}

    return rows.map(encode, remove_columns=rows.column_names)


def show(trainer: PPOTrainer) -> None:
    """Print what the first and the last batch were like, and replies to held-out prompts."""
    log = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    names = {"score": "objective/scores", "KL [nats/reply]": "objective/kl", "entropy": "objective/entropy"}
    print(f"\n{'':20}{'first batch':>12}{'last batch':>12}")
    for name, key in names.items():
        print(f"{name:20}{float(log[0][key]):12.3f}{float(log[-1][key]):12.3f}")
    trainer.generate_completions(sampling=True)


def main() -> None:
    """Train, save, show."""
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    parser.set_defaults(**DEFAULTS)
    script_args, training_args, model_args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    # A token for padding alone, as base models need one. The embedding has no row for it, and needs none.
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    reward_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    value_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)
    peft_config = get_peft_config(model_args)
    reference = None if peft_config else AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)

    rows = load_dataset("json", data_files=script_args.dataset_name, split=script_args.dataset_train_split)
    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=tokenized(rows.select(range(len(rows) - HELD_OUT)), tokenizer),
        eval_dataset=tokenized(rows.select(range(len(rows) - HELD_OUT, len(rows))), tokenizer),
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    show(trainer)


if __name__ == "__main__":
    main()
