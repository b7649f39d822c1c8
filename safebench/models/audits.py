"""Audit replies by measures independent of the reward: the share of known words, and relevance to the prompt's turn.

A judge can be exploited. These measures are cruder and fail in other cases. They apply to English.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence, Set

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from safebench import registry
from safebench.models import loading
from safebench.models.libraries import quiet_libraries
from safebench.models.prompts import as_messages

WORDS = registry.WORLD / "words.txt"
"""Words that people used in at least three of the embedded world's conversations, one a line."""
MARKS = 3
"""Maximum length of a run of marks, such as an emoticon, that is not counted; a longer one is an unknown word."""
TOKENS = 128
"""Maximum number of tokens of a text that the encoder reads, the same as in its training."""
_TOGETHER = 32
_LETTERS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


class Auditor:
    """Counts known words, and compares replies with turns by the encoder without any preference training."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._turns: dict[str, Tensor] = {}

    def columns(self, prompts: Sequence[str], replies: Sequence[str]) -> dict[str, float | None]:
        """Return the audit columns of an evaluation."""
        return {
            "eval/known_words": known_share(replies, self._known),
            "eval/relevance": relevance(self._embedded_turns(prompts), self._embed(replies)),
        }

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        vocabulary = self._encoder[1].get_vocab()
        whole = (token for token in vocabulary if _LETTERS.fullmatch(token))
        return frozenset([*WORDS.read_text(encoding="utf-8").split(), *whole])

    @functools.cached_property
    def _encoder(self) -> tuple[torch.nn.Module, AutoTokenizer]:
        place = loading.encoder_folder()
        with quiet_libraries():
            model = AutoModel.from_pretrained(place, dtype=torch.float32).eval().requires_grad_(False)
            return model.to(self.device), AutoTokenizer.from_pretrained(place)

    def _embedded_turns(self, prompts: Sequence[str]) -> Tensor:
        """Embed the last turn of each prompt, each distinct text once."""
        turns = [str(as_messages(prompt)[-1]["content"]) for prompt in prompts]
        new = [turn for turn in dict.fromkeys(turns) if turn not in self._turns]
        self._turns |= dict(zip(new, self._embed(new), strict=True))
        return torch.stack([self._turns[turn] for turn in turns])

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Return each text's embedding of unit length [n, h]: the mean of its tokens' last states."""
        model, tokenizer = self._encoder
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), _TOGETHER):
            rows = order[start : start + _TOGETHER]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
            ).to(self.device)
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (states * mask).sum(1) / mask.sum(1)
            found |= dict(zip(rows, torch.nn.functional.normalize(means, dim=-1).cpu(), strict=True))
        return torch.stack([found[row] for row in range(len(texts))]) if texts else torch.empty(0, 0)


def letters_of(text: str) -> list[str]:
    """Return the parts of a text that consist of letters and inner apostrophes, in lower case."""
    return _LETTERS.findall(text.lower().replace("\u2019", "'"))


def known_share(replies: Sequence[str], known: Set[str]) -> float:
    """Return the share of known words among the words of all replies, in [0, 1]; 0 if there are no words.

    Words are separated by blanks. A word is known if each of its parts made of letters is in ``known`` (lower case).
    Numbers, and up to three marks alone, are not words. More marks alone are an unknown word.
    """
    found = [_is_known(piece, known) for reply in replies for piece in reply.split()]
    counted = [one for one in found if one is not None]
    return sum(counted) / len(counted) if counted else 0.0


def _is_known(piece: str, known: Set[str]) -> bool | None:
    parts = letters_of(piece)
    if parts:
        return all(part in known or _joined(part, known) for part in parts)
    return None if len(piece) <= MARKS or any(letter.isdigit() for letter in piece) else False


def _joined(part: str, known: Set[str]) -> bool:
    """Return whether a word with apostrophes consists of known parts, as in the encoder's vocabulary."""
    return "'" in part and all(one in known for one in part.split("'") if one)


def relevance(turns: Tensor, replies: Tensor) -> float | None:
    """Return how much closer replies are to their own turns than to others'; None for a single reply.

    mean_i [cos(r_i, t_i) - mean_{j != i} cos(r_i, t_j)] of unit vectors ``turns`` and ``replies``, both [n, h]. It is 0
    if the replies fit any turn equally, and at most 2. A reply that repeats its turn has the highest similarity; only
    variety and judge can detect this.
    """
    n = len(turns)
    if n < 2:
        return None
    similar = replies.double() @ turns.double().T
    own = similar.diagonal()
    others = (similar.sum(1) - own) / (n - 1)
    return float((own - others).mean())
