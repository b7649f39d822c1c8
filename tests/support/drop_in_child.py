"""A run of the drop-in in a process of its own: folder, replies per process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.support.drop_in import classifier, lasting, rows, trainer, weights


def main() -> None:
    """Train SAFE for three batches and leave weights and log."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    config = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 2,
        "total_episodes": 24,
        "optim": "sgd",
        "learning_rate": 0.3,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    made = trainer(folder, safe=True, config=config, reward_model=classifier(8), eval_dataset=rows(5))
    made.train()
    if made.is_world_process_zero():
        found = {"processes": made.args.world_size, "log": [lasting(entry) for entry in made.state.log_history]}
        torch.save({**found, "weights": weights(made.model)}, folder / "found.pt")


if __name__ == "__main__":
    main()
