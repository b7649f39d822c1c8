"""Train the world's models: TRL's SFTTrainer and RewardTrainer, and transformers' own Trainer for the proxies."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

POOL = 20
"""Number of batches that share one pool of rows, within which rows are sorted by length."""


def supervise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, list[int]]],
    folder: Path,
    *,
    epochs: float,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train ``model`` in place on next-token cross-entropy over ``rows`` of ``input_ids`` and ``labels``."""
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        adam_beta2=0.95,
        max_length=96,
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length",
        **_shared(seed),
    )
    data = Dataset.from_list(rows)
    SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer).train()


class Segments(DataCollatorForPreference):  # type: ignore[misc]  # trl is Any here
    """Pads pairs, and marks whether each token is before or after the first separator."""

    def __init__(self, pad: int, separator: int) -> None:
        super().__init__(pad_token_id=pad)
        self.separator = separator

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the collated batch with ``token_type_ids``."""
        batch: dict[str, Any] = super().torch_call(examples)
        ends = (batch["input_ids"] == self.separator).cumsum(dim=1) - (batch["input_ids"] == self.separator).long()
        batch["token_type_ids"] = (ends > 0).long() * batch["attention_mask"]
        return batch


def prefer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, list[int]]],
    folder: Path,
    *,
    batch: int,
    learning_rate: float,
    centre: float,
    seed: int,
    segments: bool = True,
) -> None:
    """Train ``model`` in place on Bradley-Terry pairs, each once: rows of ``chosen_ids`` and ``rejected_ids``.

    ``segments``: the model tells turn and reply apart by segment ids, as an encoder does. ``centre`` weights the
    squared sum of a pair's two rewards, which keeps their mean near zero.
    """
    settings = RewardConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        center_rewards_coefficient=centre,
        max_length=None,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        **_shared(seed),
    )
    RewardTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(by_length(rows, batch, seed)),
        processing_class=tokenizer,
        data_collator=Segments(tokenizer.pad_token_id, tokenizer.sep_token_id) if segments else None,
    ).train()


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    folder: Path,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train ``model`` in place on the squared error between its one score and each row's ``labels``."""
    settings = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        train_sampling_strategy="group_by_length",
        **_shared(seed),
    )
    Trainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    ).train()


def by_length(rows: list[dict[str, list[int]]], batch: int, seed: int) -> list[dict[str, list[int]]]:
    """Return the rows in the order of training: shuffled, with rows of similar length in one batch.

    The trainer's own grouping by length needs a column of input ids, which pairs do not have.
    """
    rng = random.Random(seed)
    order: list[dict[str, list[int]]] = []
    shuffled = rng.sample(rows, len(rows))
    for start in range(0, len(shuffled), POOL * batch):
        pool = sorted(shuffled[start : start + POOL * batch], key=_longer)
        batches = [pool[row : row + batch] for row in range(0, len(pool), batch)]
        rng.shuffle(batches)
        order += [row for chunk in batches for row in chunk]
    return order


def _longer(row: dict[str, list[int]]) -> int:
    return max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _shared(seed: int) -> dict[str, Any]:
    return {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 50,
        "seed": seed,
        "dataloader_num_workers": 0,
    }
