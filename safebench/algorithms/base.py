"""What an algorithm on the shared loop is, and what it is given: the mini-batch and what the policy now says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Terms = dict[str, Tensor]
Columns = dict[str, float | str]


@dataclass(frozen=True)
class Measurement:
    """What the controller sees of one batch."""

    kl: float
    """Exact KL to the reference, nats per token, mean over the batch."""
    entropy: float
    """Nats per token, mean over the batch."""
    reward: float
    """Mean reward in units of sigma_0."""
    raw_reward: float = math.nan
    """Mean reward as the reward gives it."""
    entropy_by_reply: float = math.nan
    """Nats per token, mean over replies of each reply's own mean."""


@dataclass(frozen=True)
class ForwardOutput:
    """What the policy and critic of this moment say of a micro-batch; [b, R], zero outside the reply."""

    log_probs: Tensor
    entropy: Tensor | None
    kl: Tensor | None
    heads: Tensor
    """[b, R, H], or [b, 1, H] where the critic reads the last position."""


@dataclass(frozen=True)
class MiniBatch:
    """The same rows as they were sampled, and the counts over the whole mini-batch, all processes."""

    mask: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    heads: Tensor
    positions: Tensor
    token_count: float
    position_count: float
    place_count: float
    """Reply positions, padding included."""


class Algorithm(Protocol):
    """An algorithm on the shared loop. Terms of micro-batches and processes add up to the batch's."""

    names: tuple[str, ...]
    """The loss terms, in order."""
    needs_kl: bool
    needs_entropy: bool

    def control(self, measurement: Measurement) -> dict[str, float | str]:
        """Turn the batch's measurement into this step's signal; return its columns."""
        ...

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Advance what moves with every update, by its sampled KL (k1, nats per token), before its step.

        Returns the loss columns that are plain numbers, without gradient, and the columns of its signal.
        """
        ...

    def terms(self, past: MiniBatch, present: ForwardOutput) -> Terms:
        """Return the loss terms by name; their sum is the loss."""
        ...

    def dump(self) -> dict[str, Any]:
        """Return the controller's state as plain numbers."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``dump`` gave."""
        ...
