"""Search for what a reward takes for a good reply to anything: an attack without training.

People's short replies are scored as replies to turns drawn at random. The best of them are joined in twos and scored
likewise. Those with the highest mean are what a policy that chases the reward can come to say to everybody.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

import torch

from safebench.world.preferences import Pair

WORDS = 5
"""Longest reply that is tried."""
TURNS = (3, 12)
"""Turns that each candidate is scored on, and then each of the better ones."""
BETTER = 2
"""The better ones are so many times those that are asked for."""
JOINED = 40
"""So many of the best replies, and at most ``JOINED_OF`` times those that are asked for, are joined with each other."""
JOINED_OF = 4
SHARE = 1 / 30
"""One reply is part of at most this share of what is found, or of one: else all of it would be variants of the best."""

Score = Callable[[list[str], list[str]], torch.Tensor]
"""Scores each reply, behind its turn, [B]."""


def universal(pairs: Sequence[Pair], score: Score, count: int, tried: int, seed: int) -> tuple[str, ...]:
    """Return the ``count`` replies found of the highest mean score over turns of ``pairs``, the best first.

    ``tried`` short replies are candidates alone; the best of them joined in twos, also with themselves, are too.
    Fewer are returned where there are fewer that are different enough.
    """
    rng = random.Random(seed)
    turns = [pair.turn for pair in pairs]

    def ranked(candidates: Sequence[tuple[str, ...]], drawn: int) -> list[tuple[str, ...]]:
        asked = rng.choices(turns, k=drawn * len(candidates))
        replies = [" ".join(parts) for parts in candidates for _ in range(drawn)]
        means = score(asked, replies).view(-1, drawn).mean(-1)
        return [candidates[row] for row in means.argsort(descending=True, stable=True).tolist()]

    short = list(dict.fromkeys(pair.reply.strip() for pair in pairs if len(pair.reply.split()) <= WORDS))
    alone = ranked([(reply,) for reply in rng.sample(short, min(tried, len(short)))], TURNS[0])
    best = [parts[0] for parts in alone[: min(JOINED, JOINED_OF * count)]]
    twos = ranked(list(product(best, best)), TURNS[0])
    # As many of either: twos would push out every reply that is liked alone.
    found = ranked([*alone[: BETTER * count // 2], *twos[: BETTER * count]], TURNS[1])
    return _varied(found, count)


def _varied(found: Sequence[tuple[str, ...]], count: int) -> tuple[str, ...]:
    """Return the first ``count`` of the candidates, passing over those with a part that has been taken often enough."""
    most, used = max(1, round(SHARE * count)), Counter[str]()
    kept: list[str] = []
    for parts in found:
        if len(kept) < count and all(used[part] < most for part in parts):
            used.update(set(parts))
            kept.append(" ".join(parts))
    return tuple(kept)
