"""Choose the world's prompts: people's turns, each with a person's reply."""

from __future__ import annotations

import hashlib

from safebench.scoring.pairs import Pair

TRAIN, HELDOUT = 6000, 512


def choose_prompts(train: list[Pair], heldout: list[Pair], learned: list[Pair]) -> list[dict[str, str]]:
    """Return the rows of prompts.jsonl: each turn once, in the order of its hash.

    ``train`` and ``heldout`` hold the pairs that may be chosen, ``learned`` all pairs that any model learns from. A
    turn that occurs in ``learned`` is no held-out prompt.
    """
    training = _distinct(train, set())
    seen = {_key(pair) for pair in (*train, *learned)}
    rows = [("train", pair) for pair in training[:TRAIN]]
    rows += [("heldout", pair) for pair in _distinct(heldout, seen)[:HELDOUT]]
    return [{"split": split, "prompt": pair.turn, "human": pair.reply} for split, pair in rows]


def _distinct(pairs: list[Pair], seen: set[str]) -> list[Pair]:
    first: dict[str, Pair] = {}
    for pair in pairs:
        if _key(pair) not in seen:
            first.setdefault(_key(pair), pair)
    return [first[key] for key in sorted(first, key=lambda key: hashlib.sha256(key.encode()).hexdigest())]


def _key(pair: Pair) -> str:
    return " ".join(pair.turn.lower().split())
