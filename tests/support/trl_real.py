"""Runs TRL's own PPOTrainer and GRPOTrainer for a few steps on tiny random models, for the log that they leave."""

from __future__ import annotations

import string
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

WORDS = ["<pad>", "<end>", *string.ascii_letters]
REPLY = 6


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter."""
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<end>", padding_side="left")


def config(**more: Any) -> Qwen2Config:
    """Two layers of width 16."""
    return Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **more,
    )


def early_letters(completions: list[str], **_: Any) -> list[float]:
    """Reward letters from the front of the alphabet."""
    return [sum(letter in "abcdefgh" for letter in text.split()) / 3 for text in completions]


def ppo(folder: Path, steps: int, report_to: str = "none", **settings: Any) -> Path:
    """Run TRL's PPOTrainer for ``steps`` and return its trainer_state.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        torch.manual_seed(0)
        words, rows = tokenizer(), [{"input_ids": [2 + i % 20, 3 + i % 20, 4 + i % 20]} for i in range(16)]
        torch.manual_seed(1)
        reference = Qwen2ForCausalLM(config())
        torch.manual_seed(1)
        policy = Qwen2ForCausalLM(config())
        arguments = PPOConfig(
            output_dir=str(folder),
            report_to=report_to,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=2,
            total_episodes=4 * steps,
            response_length=REPLY,
            learning_rate=1e-2,
            stop_token="eos",
            num_sample_generations=0,
            save_strategy="no",
            use_cpu=True,
            seed=0,
            bf16=False,
            **settings,
        )
        trainer = PPOTrainer(
            args=arguments,
            processing_class=words,
            model=policy,
            ref_model=reference,
            reward_model=Qwen2ForSequenceClassification(config(num_labels=1)),
            value_model=Qwen2ForSequenceClassification(config(num_labels=1)),
            train_dataset=Dataset.from_list(rows),
        )
        trainer.train()
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
    return folder / "trainer_state.json"


def group(name: str, folder: Path, steps: int, report_to: str = "none", **settings: Any) -> Path:
    """Run TRL's GRPOTrainer ("grpo") or RLOOTrainer ("rloo") for ``steps`` and return its trainer_state.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl

        kinds = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer), "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}
        make_config, make_trainer = kinds[name]
        torch.manual_seed(1)
        Qwen2ForCausalLM(config()).save_pretrained(folder / "policy")  # the reference is loaded from where it lies
        arguments = make_config(
            output_dir=str(folder),
            report_to=report_to,
            per_device_train_batch_size=4,
            num_generations=4,
            max_steps=steps,
            logging_steps=1,
            max_completion_length=REPLY,
            learning_rate=1e-2,
            beta=0.05,
            save_strategy="no",
            use_cpu=True,
            seed=0,
            bf16=False,
            **settings,
        )
        trainer = make_trainer(
            model=str(folder / "policy"),
            args=arguments,
            reward_funcs=early_letters,
            processing_class=tokenizer(),
            train_dataset=Dataset.from_list([{"prompt": "a b c"}, {"prompt": "d e f"}] * 8),
        )
        trainer.train()
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
    return folder / "trainer_state.json"
