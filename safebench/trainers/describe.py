"""What a sampled batch looks like: the schema's columns of rewards, KL, entropy and replies."""

from __future__ import annotations

import torch
from torch import Tensor

from safebench.models.generation import Rollout
from safebench.rl import masked
from safebench.trainers.experience import Measured
from safebench.trainers.processes import Processes
from safebench.trainers.variety import distinct_2, distinct_share

Row = dict[str, float | str | None]


def describe(rollout: Rollout, measured: Measured, rewards: Tensor, processes: Processes) -> Row:
    """Return the columns that describe a batch, over all processes; rewards [B], the rest as ``measure`` gave it."""
    add, mask = processes.add, rollout.mask
    stops = rollout.ended.tolist()
    lengths = mask.sum(-1).tolist()
    ids = [row[: n - int(e)].tolist() for row, n, e in zip(rollout.tokens, lengths, stops, strict=True)]
    gathered = processes.gather(list(zip(rollout.replies, ids, lengths, stops, rewards.tolist(), strict=True)))
    replies, bigram_ids, lengths, stops, all_rewards = (list(column) for column in zip(*gathered, strict=True))
    scores = torch.tensor(all_rewards, dtype=torch.float64)
    log_ratio = measured.log_probs - measured.reference_log_probs
    return {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std()) if len(scores) > 1 else 0.0,
        "kl/mean": float(masked.masked_mean(measured.kl, mask, add)),
        "kl/max": max(processes.gather([float(measured.kl.max())])),
        "kl/sampled": float(add(log_ratio.sum())) / len(replies),
        "entropy/mean": float(masked.masked_mean(measured.entropy, mask, add)),
        "reply/surprisal": -float(add(measured.log_probs.sum())) / len(replies),
        "reply/length": sum(lengths) / len(replies),
        "reply/ended": sum(stops) / len(replies),
        "reply/distinct": distinct_share(replies),
        "reply/distinct_2": distinct_2(bigram_ids),
        "prompt/truncated": sum(processes.gather([rollout.truncated])),
    }
