"""Measure policy and reward models on conversations that none of them has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from safebench.analysis.frontier import expected_best
from safebench.analysis.rescored import KINDS, order, within_prompts
from safebench.analysis.statistics import Estimate
from safebench.models.audits import Auditor
from safebench.models.rewards import Reward
from safebench.scoring.pairs import Exchange
from tools.world.rewards import Half, Recipe, score, training_pairs
from tools.world.samples import sample_replies

SEED = 20261211
PER_KIND = 500
PROMPTS, DRAWS = 48, 64
"""Number of turns for which many replies are drawn, and number of replies to each."""

Rewards = Mapping[str, Reward]


def reward_figures(rewards: Rewards, half: Half, per_kind: int) -> dict[str, Any]:
    """Return, for each reward, its ordering of ``per_kind`` pairs of each kind, and its scores of people and policy.

    ``half`` holds the test conversations, with phrases from which no reward has learned.
    """
    asked = training_pairs(Recipe("test", SEED, 0, dict.fromkeys([*KINDS, "cooled", "attacked"], per_kind)), half)
    human = [Exchange(pair.turn, pair.reply) for pair in half.pairs]
    sampled = [Exchange(pair.turn, reply) for pair, reply in zip(half.pairs, half.samples, strict=False)]
    figures: dict[str, Any] = {}
    for name, reward in rewards.items():
        better, worse = (score(reward, side) for side in ([p.better for p in asked], [p.worse for p in asked]))
        on_human, on_samples = score(reward, human), score(reward, sampled)
        figures[name] = {
            "accuracy": {kind: _accuracy(kind, asked, better, worse) for kind in dict.fromkeys(p.kind for p in asked)},
            "human": _moments(on_human),
            "sample": _moments(on_samples),
        }
    return figures


def best_of_n_figures(
    rewards: Rewards, judge: str, policy: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, turns: Sequence[str]
) -> dict[str, Any]:
    """Return, for each reward, its correlation with the judge within a turn, and the judge's score of its best of n."""
    asked = [turn for turn in turns for _ in range(DRAWS)]
    replies = sample_replies(policy, tokenizer, asked, SEED)
    exchanges = [Exchange(turn, reply) for turn, reply in zip(asked, replies, strict=True)]
    scores = {name: score(reward, exchanges).double().view(-1, DRAWS).numpy() for name, reward in rewards.items()}
    sizes = [2**k for k in range(DRAWS.bit_length())]
    return {
        name: {
            "r": _interval(within_prompts(found, scores[judge])),
            "best": {str(n): round(float(expected_best(found, scores[judge], n).mean()), 3) for n in sizes},
        }
        for name, found in scores.items()
    }


def sample_table(
    rewards: Rewards,
    policy: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, str]],
    seed: int,
) -> list[dict[str, Any]]:
    """Return, for the given rows of prompts.jsonl, the prompt, a person's and the policy's reply, and their scores."""
    replies = sample_replies(policy, tokenizer, [row["prompt"] for row in rows], seed)
    human = {n: score(r, [Exchange(row["prompt"], row["human"]) for row in rows]) for n, r in rewards.items()}
    exchanges = [Exchange(row["prompt"], reply) for row, reply in zip(rows, replies, strict=True)]
    ours = {n: score(r, exchanges) for n, r in rewards.items()}
    return [
        {
            "prompt": row["prompt"],
            "human": row["human"],
            "human_scores": {name: round(float(scores[n]), 2) for name, scores in human.items()},
            "policy": replies[n],
            "policy_scores": {name: round(float(scores[n]), 2) for name, scores in ours.items()},
        }
        for n, row in enumerate(rows)
    ]


def audit_figures(half: Half) -> dict[str, Any]:
    """Return the audits of people's replies and of the policy's replies to the same turns."""
    auditor = Auditor(torch.device("cpu"))
    count = len(half.samples)
    turns = [pair.turn for pair in half.pairs[:count]]
    spoken = {"human": [pair.reply for pair in half.pairs[:count]], "sample": list(half.samples)}
    return {
        who: {key.removeprefix("eval/"): _rounded(value) for key, value in auditor.columns(turns, replies).items()}
        for who, replies in spoken.items()
    }


def _accuracy(kind: str, asked: Sequence[Any], better: torch.Tensor, worse: torch.Tensor) -> dict[str, Any]:
    rows = [row for row, preference in enumerate(asked) if preference.kind == kind]
    found = order(kind, better[rows].tolist(), worse[rows].tolist())
    return _interval(found.right) | {"tied": found.tied}


def _interval(found: Estimate) -> dict[str, Any]:
    return {
        "share": _rounded(found.value),
        "low": _rounded(found.low),
        "high": _rounded(found.high),
        "n": found.n,
    }


def _moments(scores: torch.Tensor) -> dict[str, float]:
    return {"mean": round(float(scores.mean()), 3), "std": round(float(scores.std()), 3)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
