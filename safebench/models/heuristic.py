"""The word-count heuristic that takes the reward model's place in SAFE's released code when that does not load."""

from __future__ import annotations

from collections.abc import Sequence

WELCOME = ("help", "sure", "here")
"""Each scores once, wherever it stands, inside other words too ("there", "unsure")."""


def score(text: str) -> float:
    """Return 0.3 [20 < n < 200] + 0.3 d / n + 0.05 k, in [0, 0.75].

    n words between blanks, d distinct ones of them, k of ``WELCOME`` that occur, all in lower case; an empty text
    scores 0. The release cuts the sum to [-1, 1], which it cannot leave. Its most, 0.75, takes 21 to 199 words, no
    two alike, and all three that are welcome.
    """
    text = text.lower()
    words = text.split()
    length = 0.3 if 20 < len(words) < 200 else 0.0
    variety = 0.3 * len(set(words)) / len(words) if words else 0.0
    return length + variety + 0.05 * sum(word in text for word in WELCOME)


def safe_heuristic(prompts: list[str], replies: list[str]) -> Sequence[float]:
    """Score each prompt with its reply, as the release does: the prompt's words count too.

    Replies come without the blank that a model writes before its first word; it is put back.
    """
    return [score(f"{prompt} {reply}") for prompt, reply in zip(prompts, replies, strict=True)]
