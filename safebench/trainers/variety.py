"""How varied a batch of replies is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def distinct_share(replies: Sequence[str]) -> float:
    """Return the number of distinct replies, blanks around them aside, over the number of replies, in (0, 1]."""
    return len({reply.strip() for reply in replies}) / len(replies)


def distinct_2(replies: Sequence[Sequence[int]]) -> float:
    """Return distinct bigrams over all bigrams of token ids, pooled over the batch (Li et al. 2016, 1510.03055).

    Without any bigram (every reply shorter than two tokens) there is no variety to speak of: 0.
    """
    bigrams = [pair for reply in replies for pair in pairwise(reply)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0
