"""Measure both reward models on conversations that neither of them, nor the policy, has seen."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import torch
from scipy.stats import binomtest, spearmanr
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from safebench.world.build.rewards import score
from safebench.world.build.samples import sample_replies
from safebench.world.preferences import (
    GENERIC,
    HIGH,
    LOW,
    SPOILED,
    Exchange,
    Pair,
    Preference,
    over_foreign,
    over_generic,
    over_rating,
    over_sample,
    over_spoiled,
)

SEED = 20260221
PER_KIND = 1000

Models = dict[str, Qwen2ForSequenceClassification]


def heldout_figures(
    models: Models, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], samples: list[str], pieces: list[str]
) -> dict[str, Any]:
    """Return accuracies per kind, shares below the median human reply, and how the models agree.

    ``pairs`` are the test conversations' short pairs, ``samples`` the policy's replies to their turns.
    """
    rng = random.Random(SEED)
    human = [Exchange(pair.turn, pair.reply) for pair in pairs]
    sampled = [Exchange(pair.turn, sample) for pair, sample in zip(pairs, samples, strict=True)]
    kinds = _kinds(pairs, samples, pieces, rng)
    figures: dict[str, Any] = {}
    on_samples = {}
    for name, model in models.items():
        on_human = score(model, tokenizer, human)
        on_samples[name] = score(model, tokenizer, sampled)
        median = float(on_human.median())
        figures[name] = {
            "accuracy": {kind: _accuracy(model, tokenizer, found) for kind, found in kinds.items()}
            | {"rating of whole conversations": _by_conversation(pairs, on_human, rng)},
            "below_median_human": {
                kind: _share_below(model, tokenizer, [p.worse for p in kinds[kind]], median)
                for kind in (*SPOILED, "generic")
            },
            "human": _moments(on_human),
            "sample": _moments(on_samples[name]),
        }
    proxy, judge = on_samples["proxy"], on_samples["judge"]
    figures["agreement"] = {
        "pearson": round(float(torch.corrcoef(torch.stack([proxy, judge]))[0, 1]), 3),
        "spearman": round(float(spearmanr(proxy.numpy(), judge.numpy()).statistic), 3),
        "n": len(samples),
    }
    return figures


def sample_table(
    models: Models, policy: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]], seed: int
) -> list[dict[str, Any]]:
    """Return prompt, a person's reply and the policy's, each with its scores, for the rows of prompts.jsonl given."""
    replies = sample_replies(policy, tokenizer, [row["prompt"] for row in rows], seed)
    human = {n: score(m, tokenizer, [Exchange(row["prompt"], row["human"]) for row in rows]) for n, m in models.items()}
    exchanges = [Exchange(row["prompt"], reply) for row, reply in zip(rows, replies, strict=True)]
    ours = {n: score(m, tokenizer, exchanges) for n, m in models.items()}
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


def _kinds(pairs: list[Pair], samples: list[str], pieces: list[str], rng: random.Random) -> dict[str, list[Preference]]:
    found = {
        "sample": over_sample(pairs, samples),
        "foreign": over_foreign(pairs, rng),
        "rating": over_rating(pairs, rng),
        "generic": over_generic(pairs, rng, GENERIC[1::2]),
    }
    for kind in SPOILED:
        found[kind] = over_spoiled(pairs, samples, pieces, rng, (kind,))
    return {kind: rng.sample(rows, min(PER_KIND, len(rows))) for kind, rows in found.items()}


def _accuracy(
    model: Qwen2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, found: list[Preference]
) -> dict[str, Any]:
    better = score(model, tokenizer, [p.better for p in found])
    worse = score(model, tokenizer, [p.worse for p in found])
    return interval(int((better > worse).sum()), len(found))


def _by_conversation(pairs: list[Pair], scores: torch.Tensor, rng: random.Random) -> dict[str, Any]:
    """Accuracy of the mean score of a conversation's replies; each conversation is in one pair at most."""
    rows: dict[str, list[int]] = defaultdict(list)
    rated = {}
    for row, pair in enumerate(pairs):
        if pair.rating is not None:
            rows[pair.conversation].append(row)
            rated[pair.conversation] = pair.rating
    high = [name for name, rating in rated.items() if rating >= HIGH]
    low = [name for name, rating in rated.items() if rating < LOW]
    rng.shuffle(high)
    rng.shuffle(low)
    matches = list(zip(high, low, strict=False))
    right = sum(float(scores[rows[one]].mean()) > float(scores[rows[two]].mean()) for one, two in matches)
    return interval(right, len(matches))


def _share_below(
    model: Qwen2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, worse: list[Exchange], median: float
) -> dict[str, Any]:
    scores = score(model, tokenizer, worse)
    return interval(int((scores < median).sum()), len(worse))


def _moments(scores: torch.Tensor) -> dict[str, float]:
    return {"mean": round(float(scores.mean()), 3), "std": round(float(scores.std()), 3)}


def interval(successes: int, n: int) -> dict[str, Any]:
    """Return the share of successes with its exact (Clopper-Pearson) 95 % interval."""
    bounds = binomtest(successes, n).proportion_ci(0.95, method="exact")
    return {
        "share": round(successes / n, 4),
        "low": round(float(bounds.low), 4),
        "high": round(float(bounds.high), 4),
        "n": n,
    }
