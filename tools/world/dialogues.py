"""Read the human conversations and cut them into (turn, reply) pairs, split by conversation.

Source: the package ``chitchat-dataset`` 0.9.0 (MIT; Myers, Etchart, Fulda 2020).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from typing import Any

from safebench.scoring.pairs import Pair

SHORTEST, LONGEST = 4, 119
"""Shortest and longest turn or reply that is kept, in characters."""

# Addresses, numbers long enough to identify a person, and words that a demo should not print.
_UNWANTED = re.compile(
    r"https?:|www\.|\S@\S|\d{6,}|\b(?:fuck|shit|bitch|cunt|nigg|fag|whore|slut|rape|dick|cock|pussy)",
    re.IGNORECASE,
)
_SPACES = re.compile(r"\s+")


def split_of(conversation: str) -> str:
    """Return ``proxy``, ``judge`` or ``test``, from a hash of the conversation's id alone."""
    bucket = int(hashlib.sha256(conversation.encode()).hexdigest(), 16) % 100
    return "proxy" if bucket < 45 else "judge" if bucket < 90 else "test"


def read_pairs() -> dict[str, list[Pair]]:
    """Return the pairs of each split, in the order of the data."""
    text = files("chitchat_dataset").joinpath("dataset.json").read_text(encoding="utf-8")
    splits: dict[str, list[Pair]] = {"proxy": [], "judge": [], "test": []}
    for name, conversation in json.loads(text).items():
        splits[split_of(name)].extend(_pairs(name, conversation))
    return splits


def _pairs(name: str, conversation: dict[str, Any]) -> Iterator[Pair]:
    turns = [_SPACES.sub(" ", " ".join(m["text"] for m in turn)).strip() for turn in conversation["messages"]]
    for turn, reply in pairwise(turns):
        if _usable(turn) and _usable(reply):
            yield Pair(name, turn, reply)


def _usable(text: str) -> bool:
    return SHORTEST <= len(text) <= LONGEST and not _UNWANTED.search(text)
