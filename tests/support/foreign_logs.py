"""Histories as verl and OpenRLHF would leave them, written by hand from the keys in their sources (see docs/import.md).

Neither runs here: both need GPUs and a cluster's worth of services. TRL's logs under tests/data are real ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write one object per line, as JSON with NaN and Infinity by these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trl(name: str) -> list[dict[str, Any]]:
    """Rows that TRL 1.12.0 really logged: ``ppo``, ``grpo`` or ``rloo``."""
    return [json.loads(line) for line in (DATA / f"trl-1.12.0-{name}.jsonl").read_text().splitlines()]


def verl(steps: int, *, collapse_at: int | None = None) -> list[dict[str, Any]]:
    """verl's file logger: the evaluation before training, then a row a step, every tenth with an evaluation.

    From ``collapse_at`` on entropy, length and score fall to a fraction and stay there.
    """
    rows: list[dict[str, Any]] = [{"step": 0, "data": {"val-core/chat/reward/mean@1": 0.25}}]
    for step in range(1, steps + 1):
        fallen = collapse_at is not None and step >= collapse_at
        data = {
            "training/global_step": step,
            "training/epoch": 0,
            "critic/score/mean": -3.0 if fallen else 1.0 + 0.01 * step,
            "critic/score/max": 2.0,
            "critic/rewards/mean": (-3.0 if fallen else 1.0 + 0.01 * step) - 0.05,
            "critic/advantages/mean": 0.0,
            "critic/returns/mean": 0.9,
            "critic/values/mean": 0.8,
            "critic/vf_explained_var": 0.6,
            "critic/vf_loss": 0.1,
            "critic/grad_norm": 3.5,
            "actor/entropy": 0.1 if fallen else 2.0 + 0.1 * math.sin(step),
            "actor/pg_loss": 0.01,
            "actor/pg_clipfrac": 0.02,
            "actor/ppo_kl": 0.001,
            "actor/kl_loss": 0.04,
            "actor/kl_coef": 0.001,
            "actor/grad_norm": 1.25,
            "actor/lr": 1e-6,
            "response_length/mean": 3.0 if fallen else 100.0,
            "response_length/max": 128.0,
            "response_length/clip_ratio": 0.125,
            "timing_s/gen": 4.0,
            "timing_s/old_log_prob": 1.0,
            "timing_s/ref": 0.5,
            "timing_s/values": 0.25,
            "timing_s/adv": 0.125,
            "timing_s/update_critic": 2.0,
            "timing_s/update_actor": 3.0,
            "timing_s/step": 20.0,
            "perf/throughput": 1000.0,
            "perf/max_memory_allocated_gb": 30.0,
        }
        if step % 10 == 0:
            data |= {"val-core/chat/reward/mean@1": 0.5, "timing_s/testing": 7.0}
        rows.append({"step": step, "data": data})
    return rows


def openrlhf(steps: int) -> list[dict[str, Any]]:
    """OpenRLHF's W&B log of PPO with a critic, one row a step."""
    return [
        {
            "train/global_step": step,
            "train/policy_loss": 0.01,
            "train/critic_loss": 0.2,
            "train/actor_lr": 5e-7,
            "train/critic_lr": 9e-6,
            "train/reward": 0.5 + 0.01 * step,
            "train/return": 0.4 + 0.01 * step,
            "train/kl": 0.02,
            "train/response_length": 200.0 + step,
            "train/total_length": 260.0 + step,
            "train/response_clip_ratio": 0.03125,
            "train/ppo_clip_ratio": 0.015625,
            "train/ppo_kl": 0.0005,
            "train/values": 0.3,
            "train/group_reward_std": 0.25,
        }
        for step in range(1, steps + 1)
    ]
