"""Whole runs of the tiny policy, from a model folder, a prompt file and a reward function on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from safebench import config
from safebench.config.schema import Settings
from safebench.metrics import METRICS
from tests.support.tiny import tiny_policy

REWARDS = '''
from pathlib import Path

def share_of_a(prompts, replies):
    return [reply.count("a") / max(1, len(reply)) for reply in replies]

def huge(prompts, replies):
    return [3e38 * (-1) ** i for i, _ in enumerate(replies)]

def constant(prompts, replies):
    return [1.0 for _ in replies]

def short(prompts, replies):
    return [0.0]

def nothing(prompts, replies):
    return [float("nan") for _ in replies]

def fragile(prompts, replies):
    if (Path(__file__).parent / "out-of-tea").exists():
        raise RuntimeError("out of tea")
    return share_of_a(prompts, replies)

def raising(prompts, replies):
    raise RuntimeError("out of tea")
'''

DETERMINISTIC = [metric.key for metric in METRICS if not metric.environment]


def make_parts(folder: Path) -> Path:
    """Write a tiny model, 160 prompts and reward functions into ``folder`` and return it."""
    policy = tiny_policy()
    base = policy.model.unload()
    base.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    prompts = [f"{x} {y} {z}" for x in "abcde" for y in "fghi" for z in "jklmnopq"]
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    (folder / "tiny_rewards.py").write_text(REWARDS, encoding="utf-8")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder


def overrides(parts: Path, **values: Any) -> list[str]:
    """Return ``--set`` values for a run of six steps of eight replies; ``a__b=v`` sets a.b."""
    chosen: dict[str, Any] = {
        "model.name": str(parts / "model"),
        "reward.name": "tiny_rewards:share_of_a",
        "reward.judge": "null",
        "prompts.name": str(parts / "prompts.txt"),
        "rollout.batch": 8,
        "rollout.reply_tokens": 6,
        "update.steps": 6,
        "update.learning_rate": 0.01,
        "evaluation.every": 3,
        "evaluation.prompts": 16,
        "recording.checkpoint_every": 2,
        "compute.device": "cpu",
    }
    chosen |= {key.replace("__", "."): value for key, value in values.items()}
    return [f"{key}={value}" for key, value in chosen.items()]


def tiny_run(parts: Path, experiment: str, **values: Any) -> Settings:
    """Return the settings of such a run."""
    return config.resolve(experiment, overrides=overrides(parts, **values))


def rows(folder: Path) -> pd.DataFrame:
    """Return the columns of a run that do not depend on the machine's load."""
    return pd.read_csv(folder / "metrics.csv")[DETERMINISTIC]
