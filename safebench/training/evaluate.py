"""Evaluate on fixed held-out prompts, with the seed's sampling noise at temperature 1, by proxy, judge and audits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from safebench.config.schema import Settings
from safebench.models import seeding
from safebench.models.assemble import World
from safebench.models.generation import encode, sample
from safebench.models.prompts import conversation_of
from safebench.models.rewards import score
from safebench.recording.jsonl import Sample
from safebench.training.distributed import Processes
from safebench.training.measure import measure


def distinct_share(replies: Sequence[str]) -> float:
    """Return the number of distinct replies, without surrounding blanks, over the number of replies, in (0, 1]."""
    return len({reply.strip() for reply in replies}) / len(replies)


def distinct_2(replies: Sequence[Sequence[int]]) -> float:
    """Return distinct bigrams over all bigrams of token ids, pooled over the batch (Li et al. 2016, 1510.03055).

    Return 0 if there is no bigram (every reply is shorter than two tokens).
    """
    bigrams = [pair for reply in replies for pair in pairwise(reply)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the columns of the metrics, the spreads over prompts, and the replies."""

    columns: dict[str, float | None]
    reward_std: float
    judge_std: float | None
    samples: list[Sample]


def evaluate(settings: Settings, world: World, processes: Processes, piece: int | None = None) -> Evaluation:
    """Sample and measure replies to the held-out prompts; a seed's noise is the same for every algorithm and step.

    ``piece`` prompts of each process are held in memory at once; all prompts if None.
    """
    share = range(processes.rank, len(world.prompts.heldout), processes.count)
    size = piece or max(1, len(share))
    rows = [row for start in range(0, len(share), size) for row in _rows(settings, world, share[start : start + size])]
    rows = sorted(processes.gather(rows), key=lambda row: int(row["row"]))
    judged = [row["judge"] for row in rows if row["judge"] is not None]
    tokens = sum(row["length"] for row in rows)
    rewards = [row["reward"] for row in rows]
    columns: dict[str, float | None] = {
        "eval/reward": fmean(rewards),
        "eval/judge": fmean(judged) if judged else None,
        "eval/kl": sum(row["kl"] for row in rows) / tokens,
        "eval/entropy": sum(row["entropy"] for row in rows) / tokens,
        "eval/length": tokens / len(rows),
        "eval/distinct": distinct_share([row["reply"] for row in rows]),
        "eval/distinct_2": distinct_2([row["tokens"] for row in rows]),
        "eval/first_perplexity": _exp(sum(row["surprisal"] for row in rows) / tokens),
    }
    if world.auditor is not None:
        columns |= world.auditor.columns([row["prompt"] for row in rows], [row["reply"] for row in rows])
    samples = [
        Sample(
            row["row"],
            row["prompt"],
            row["reply"],
            row["reward"],
            row["judge"],
            "heldout",
            conversation_of(row["prompt"]),
        )
        for row in rows
    ]
    spread = stdev(rewards) if len(rewards) > 1 else 0.0
    return Evaluation(columns, spread, stdev(judged) if len(judged) > 1 else None, samples)


def _exp(value: float) -> float:
    """Return exp of ``value``, or infinity if that is too large for a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _rows(settings: Settings, world: World, share: range) -> list[dict[str, Any]]:
    prompts = [world.prompts.heldout[i] for i in share]
    if not prompts:
        return []
    policy = world.policy
    encoded = encode(
        prompts,
        [world.prompts.ids("heldout", i, policy.tokenizer) for i in share],
        settings.prompts.max_tokens,
        int(policy.tokenizer.pad_token_id),
        policy.device,
    )
    draws = seeding.uniforms("heldout", settings.seed, 0, share, settings.rollout.reply_tokens)
    rollout = sample(policy, encoded, draws, 1.0, settings.rollout.chunk)
    measured = measure(policy, rollout, 1.0, settings.update.microbatch or settings.rollout.batch)
    rewards = score(world.reward, rollout).tolist()
    judged = score(world.judge, rollout).tolist() if world.judge else [None] * len(prompts)
    kl, entropy = measured.kl.sum(-1).tolist(), measured.entropy.sum(-1).tolist()
    surprisal = (-measured.reference_log_probs.sum(-1)).tolist()
    lengths, stops = rollout.mask.sum(-1).tolist(), rollout.ended.tolist()
    return [
        {
            "row": row,
            "prompt": prompts[i],
            "reply": rollout.replies[i],
            "reward": rewards[i],
            "judge": judged[i],
            "kl": kl[i],
            "entropy": entropy[i],
            "surprisal": surprisal[i],
            "length": lengths[i],
            "tokens": rollout.tokens[i, : lengths[i] - int(stops[i])].tolist(),
        }
        for i, row in enumerate(share)
    ]
