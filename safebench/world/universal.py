"""Search for what a reward takes for a good reply to anything: an attack without training.

People's short replies, alone and in twos, are scored as replies to turns drawn at random; those with the highest mean
are what a policy that chases the reward can come to say to everybody.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from safebench.world.preferences import Pair
from safebench.world.prompts import Prompt
from safebench.world.rewards import Reward

WORDS = 5
"""Longest reply that is tried."""
TURNS = (3, 12)
"""Turns that each candidate is scored on, and then each of the better ones."""
BETTER = 3
"""The better ones are so many times those that are asked for."""

TOGETHER = 128
"""Replies that are scored at once."""


def universal(pairs: Sequence[Pair], reward: Reward, count: int, tried: int, seed: int) -> tuple[str, ...]:
    """Return the ``count`` candidates of the highest mean reward over turns of ``pairs``, the best first.

    ``tried`` replies are candidates alone; as many are joined from two, every third of them from one said twice.
    """
    rng = random.Random(seed)
    turns: list[str] = [Prompt(pair.turn) for pair in pairs]
    found = _candidates(pairs, tried, rng)
    for drawn, kept in zip(TURNS, (BETTER * count, count), strict=True):
        asked = rng.choices(turns, k=drawn * len(found))
        replies = [reply for reply in found for _ in range(drawn)]
        parts = range(0, len(asked), TOGETHER)
        scores = torch.cat([reward.score(asked[n : n + TOGETHER], replies[n : n + TOGETHER]) for n in parts])
        means = scores.view(-1, drawn).mean(-1)
        found = [found[row] for row in means.argsort(descending=True, stable=True)[:kept].tolist()]
    return tuple(found)


def _candidates(pairs: Sequence[Pair], tried: int, rng: random.Random) -> list[str]:
    """Return short replies of people, and such joined in twos, each once."""
    short = list(dict.fromkeys(pair.reply.strip() for pair in pairs if len(pair.reply.split()) <= WORDS))
    firsts, seconds = (rng.sample(short, min(tried, len(short))) for _ in range(2))
    twos = [f"{one} {one if n % 3 == 0 else other}" for n, (one, other) in enumerate(zip(firsts, seconds, strict=True))]
    return list(dict.fromkeys([*firsts, *twos]))
