"""Search for what a reward takes for a good reply to anything: an attack without training.

People's short replies, alone and in twos, are scored as replies to turns drawn at random; those with the highest mean
are what a policy that chases the reward can come to say to everybody.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from safebench.world.preferences import Pair

WORDS = 5
"""Longest reply that is tried."""
TURNS = (3, 12)
"""Turns that each candidate is scored on, and then each of the better ones."""
BETTER = 3
"""The better ones are so many times those that are asked for."""

Score = Callable[[list[str], list[str]], torch.Tensor]
"""Scores each reply, behind its turn, [B]."""


def universal(pairs: Sequence[Pair], score: Score, count: int, tried: int, seed: int) -> tuple[str, ...]:
    """Return the ``count`` candidates of the highest mean score over turns of ``pairs``, the best first.

    ``tried`` replies are candidates alone; as many are joined from two, every third of them from one said twice.
    """
    rng = random.Random(seed)
    turns = [pair.turn for pair in pairs]
    found = _candidates(pairs, tried, rng)
    for drawn, kept in zip(TURNS, (BETTER * count, count), strict=True):
        asked = rng.choices(turns, k=drawn * len(found))
        replies = [reply for reply in found for _ in range(drawn)]
        means = score(asked, replies).view(-1, drawn).mean(-1)
        found = [found[row] for row in means.argsort(descending=True, stable=True)[:kept].tolist()]
    return tuple(found)


def _candidates(pairs: Sequence[Pair], tried: int, rng: random.Random) -> list[str]:
    """Return short replies of people, and such joined in twos, each once."""
    short = list(dict.fromkeys(pair.reply.strip() for pair in pairs if len(pair.reply.split()) <= WORDS))
    firsts, seconds = (rng.sample(short, min(tried, len(short))) for _ in range(2))
    twos = [f"{one} {one if n % 3 == 0 else other}" for n, (one, other) in enumerate(zip(firsts, seconds, strict=True))]
    return list(dict.fromkeys([*firsts, *twos]))
