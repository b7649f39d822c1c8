"""Checks a reward on pairs of replies whose order is known, and, with a judge, on replies of the initial policy."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from safebench import registry
from safebench.analysis import frontier
from safebench.analysis.frontier import Record
from safebench.analysis.rescored import KINDS, Order, order
from safebench.analysis.statistics import Estimate, mean
from safebench.config.schema import Settings
from safebench.models import seeding
from safebench.models.assemble import World, assemble
from safebench.models.generation import encode, sample
from safebench.models.libraries import quiet_libraries
from safebench.models.prompts import Prompt, encode_prompt
from safebench.models.rewards import Reward
from safebench.recording.files import write_atomic
from safebench.scoring.best_of_n import sample_best_of_n
from safebench.scoring.pairs import (
    Pair,
    Preference,
    kept_phrases,
    over_foreign,
    over_generic,
    over_sample,
    over_spoiled,
    universal,
)
from safebench.training.distributed import Processes

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and the total."""
SEED = 20261127
TOGETHER = 128
"""Replies that are sampled or scored at once."""
LIKED, TRIED, FRESH = 5, 300, 64
"""Replies to anything that are reported, short replies that are tried alone, and turns for the reported scores."""


@dataclass(frozen=True)
class Liked:
    """A reply that a search found the reward to score highly for any turn, and its score on turns new to the search."""

    reply: str
    score: Estimate


@dataclass(frozen=True)
class RewardCheck:
    """Results of a check: on pairs, kind by kind, and on the initial policy's replies."""

    orders: tuple[Order, ...]
    liked: tuple[Liked, ...]
    """Replies that the reward scores highly for any turn."""
    people: Estimate
    """The reward's score of people's replies to the same turns, each reply to its own turn."""
    record: Record
    notices: tuple[str, ...]


def check_reward(settings: Settings, root: Path, draws: int, progress: Progress) -> RewardCheck:
    """Check ``settings.reward.name`` on the world's held-out exchanges and on ``draws`` replies to each prompt.

    Writes ``<root>/reward-checks/<model>/best-of-n/<hash>/``: the record of best of n, from which an interrupted call
    continues, and ``orders.json``. Raises the errors that loading the reward raises.
    """
    folder = sample_best_of_n(
        settings, root / "reward-checks", draws=draws, progress=lambda at, of: progress("replies scored", at, of)
    )
    with quiet_libraries():
        world = assemble(settings, Processes(settings.compute).device)
        pairs = heldout_pairs()
        found = preferences(pairs, _answers(world, settings, pairs))
        scores = _scores(world.reward, found, progress)
    orders = tuple(
        order(kind, *([scores[pair] for pair in side] for side in _sides(found, kind)))
        for kind in KINDS
        if any(p.kind == kind for p in found)
    )
    with quiet_libraries():
        liked, people = liked_by(world.reward, pairs, progress)
    found_out = {
        "reward": world.reward.name,
        "orders": [asdict(one) for one in orders],
        "liked": [asdict(one) for one in liked],
        "people": asdict(people),
    }
    text = json.dumps(found_out, indent=2)
    write_atomic(folder / "orders.json", f"{text}\n".encode())
    return RewardCheck(orders, liked, people, frontier.read_record(folder), world.notices)


def liked_by(reward: Reward, pairs: Sequence[Pair], progress: Progress) -> tuple[tuple[Liked, ...], Estimate]:
    """Return the replies that a search over half of ``pairs`` finds, and the score of people's own replies.

    Both are scored on turns of the other half.
    """

    def score(turns: list[str], replies: list[str]) -> Tensor:
        return _scored(reward, turns, replies, "replies to anything scored", progress)

    found = universal(pairs[: len(pairs) // 2], score, LIKED, TRIED, SEED)
    fresh = pairs[len(pairs) // 2 :][:FRESH]
    turns = [pair.turn for pair in fresh]
    liked = tuple(Liked(reply, mean(score(turns, [reply] * len(turns)).tolist())) for reply in found)
    return liked, mean(score(turns, [pair.reply for pair in fresh]).tolist())


def heldout_pairs() -> list[Pair]:
    """Return the embedded world's held-out turns, each with a person's reply."""
    rows = map(json.loads, (registry.WORLD / "prompts.jsonl").read_text(encoding="utf-8").splitlines())
    return [Pair("", row["prompt"], row["human"]) for row in rows if row["split"] == "heldout"]


def preferences(pairs: Sequence[Pair], answers: Sequence[str]) -> list[Preference]:
    """Return pairs of each kind in KINDS: a person's reply and one that should score lower; the same at every call."""
    rng, people, kept = random.Random(SEED), [pair.reply for pair in pairs], kept_phrases()
    pieces = [f" {word}" for reply in people for word in reply.split()]
    found = [
        *over_sample(list(pairs), list(answers)),
        *over_foreign(list(pairs), rng),
        *over_generic(list(pairs), rng, kept["generic"]),
        *over_generic(list(pairs), rng, kept["opener"], "opener"),
    ]
    made = {preference.kind for preference in found}
    for kind in KINDS:
        if kind not in made:
            found += over_spoiled(list(pairs), people, pieces, rng, (kind,))
    return found


Asked = tuple[str, str]
"""A turn and a reply to it."""


def _sides(found: Sequence[Preference], kind: str) -> tuple[list[Asked], list[Asked]]:
    chosen = [p for p in found if p.kind == kind]
    return [(p.better.turn, p.better.reply) for p in chosen], [(p.worse.turn, p.worse.reply) for p in chosen]


def _answers(world: World, settings: Settings, pairs: Sequence[Pair]) -> list[str]:
    """Return one reply of the initial policy to each turn, at temperature 1."""
    policy, replies = world.policy, list[str]()
    for start in range(0, len(pairs), TOGETHER):
        turns = [pair.turn for pair in pairs[start : start + TOGETHER]]
        ids = [encode_prompt(policy.tokenizer, turn) for turn in turns]
        pad = int(policy.tokenizer.pad_token_id)
        encoded = encode(turns, ids, settings.prompts.max_tokens, pad, policy.device)
        rows = range(start, start + len(turns))
        uniform = seeding.uniforms("reward-check", 0, 0, rows, settings.rollout.reply_tokens)
        with policy.as_reference():
            replies += sample(policy, encoded, uniform, 1.0, settings.rollout.chunk).replies
    return replies


def _scores(reward: Reward, found: Sequence[Preference], progress: Progress) -> dict[Asked, float]:
    """Return the score of each exchange among the preferences; each exchange is scored once."""
    asked = list(dict.fromkeys(pair for kind in KINDS for side in _sides(found, kind) for pair in side))
    scores = _scored(reward, [turn for turn, _ in asked], [reply for _, reply in asked], "pairs scored", progress)
    return dict(zip(asked, scores.tolist(), strict=True))


def _scored(reward: Reward, turns: list[str], replies: list[str], what: str, progress: Progress) -> Tensor:
    """Return the score of each reply, [B], computed in batches."""
    scores = []
    for start in range(0, len(turns), TOGETHER):
        some = slice(start, start + TOGETHER)
        scores.append(reward.score([Prompt(turn) for turn in turns[some]], replies[some]))
        progress(what, min(start + TOGETHER, len(turns)), len(turns))
    return torch.cat(scores)
