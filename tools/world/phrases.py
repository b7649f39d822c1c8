"""Collect replies that say nothing and openings of a conversation: those of people of one half, and listed ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from safebench.models.audits import letters_of
from safebench.scoring.pairs import GENERIC, KEPT, LEARNED, OPENERS, Pair

COMMON = 4
"""Least number of occurrences in a half for a reply or opening to count as one that fits anything."""
CONVERSATIONS = 3
"""Least number of conversations with a word for the word to count as known."""


def learned_phrases(pairs: Sequence[Pair]) -> dict[str, tuple[str, ...]]:
    """Return the phrases to learn from, by kind; none of them is among those kept for the test."""
    firsts: dict[str, str] = {}
    for pair in pairs:
        firsts.setdefault(pair.conversation, pair.turn)
    return {
        "generic": _phrases(GENERIC, (pair.reply for pair in pairs)),
        "opener": _phrases(OPENERS, firsts.values()),
    }


def common_words(pairs: Sequence[Pair]) -> list[str]:
    """Return the words, in lower case, that occur in at least ``CONVERSATIONS`` conversations."""
    seen: dict[str, set[str]] = {}
    for pair in pairs:
        for text in (pair.turn, pair.reply):
            for word in letters_of(text):
                seen.setdefault(word, set()).add(pair.conversation)
    return sorted(word for word, names in seen.items() if len(names) >= CONVERSATIONS)


def _phrases(listed: tuple[str, ...], said: Iterable[str]) -> tuple[str, ...]:
    kept = {_plain(phrase) for phrase in listed[KEPT]}
    counts = Counter(" ".join(text.lower().split()) for text in said)
    common = sorted(text for text, count in counts.items() if count >= COMMON)
    return tuple(dict.fromkeys(text for text in [*listed[LEARNED], *common] if _plain(text) not in kept))


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
