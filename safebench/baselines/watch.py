"""How a wrapped trainer and we speak: it is made by a method, and gives the batches that it samples to a watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from safebench.models.generation import Encoded
from safebench.trainers.describe import Row

Log = dict[str, Any]
"""What a trainer logs at once, by its own keys."""


class Method(Protocol):
    """What is a wrapped trainer's own: how it is made, and what its log says in our units."""

    logs_per_step: int
    """How often it logs between two batches."""

    def trainer(self, watch: Watch, folder: str) -> Any:
        """Return the other library's trainer, which gives each batch to ``watch``; ``folder`` stays empty."""
        ...

    def columns(self, logs: list[Log], row: Row) -> Row:
        """Return the columns that a step's logs fill, given those of its batch; none that has another definition."""
        ...


class Watch(Protocol):
    """Takes the batches of a trainer, in one piece or in several."""

    def score(self, prompts: Encoded, replies: list[list[int]]) -> Tensor:
        """Return the training reward of each reply, [b] on the CPU, given the ids that were sampled for it.

        Called after sampling and before any update, for each row of the batch once, in order.
        """
        ...


@dataclass(frozen=True)
class Piece:
    """Some rows of a batch: prompts, sampled ids, and rewards before stress, [b]."""

    prompts: Encoded
    replies: list[list[int]]
    rewards: Tensor


def whole(pieces: list[Piece]) -> tuple[Encoded, list[list[int]]]:
    """Put the pieces of a batch together; their prompts are padded to one width."""
    parts = [piece.prompts for piece in pieces]
    prompts = Encoded(
        [text for part in parts for text in part.texts],
        torch.cat([part.ids for part in parts]),
        torch.cat([part.attention for part in parts]),
        sum(part.truncated for part in parts),
    )
    return prompts, [reply for piece in pieces for reply in piece.replies]
