"""Implement the word-count heuristic that SAFE's released code uses if its reward model does not load."""

from __future__ import annotations

from collections.abc import Sequence

WELCOME = ("help", "sure", "here")
"""Each word scores once if it occurs anywhere in the text, also inside other words ("there", "unsure")."""


def score(text: str) -> float:
    """Return 0.3 [20 < n < 200] + 0.3 d / n + 0.05 k, in [0, 0.75].

    n is the number of words between blanks, d the number of distinct words, and k the number of ``WELCOME`` words that
    occur, all in lower case. An empty text scores 0. The release clips the sum to [-1, 1], which never has an effect.
    The maximum, 0.75, needs 21 to 199 words, all distinct, and all three ``WELCOME`` words.
    """
    text = text.lower()
    words = text.split()
    length = 0.3 if 20 < len(words) < 200 else 0.0
    variety = 0.3 * len(set(words)) / len(words) if words else 0.0
    return length + variety + 0.05 * sum(word in text for word in WELCOME)


def safe_heuristic(prompts: list[str], replies: list[str]) -> Sequence[float]:
    """Score each prompt with its reply, as in the release; the prompt's words count too.

    Replies come without the blank that a model writes before its first word; the blank is inserted again.
    """
    return [score(f"{prompt} {reply}") for prompt, reply in zip(prompts, replies, strict=True)]
