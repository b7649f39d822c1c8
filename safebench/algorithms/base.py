"""What an algorithm on the shared loop is, and what it is given: a scored batch, mini-batches, the policy's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from safebench.models.critic import Critic
from safebench.models.generation import Rollout
from safebench.models.policy import Policy
from safebench.rl.advantages import Add, identity

Terms = dict[str, Tensor]
Columns = dict[str, float | str]


@dataclass(frozen=True)
class Measurement:
    """What a controller sees of one batch."""

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
class Measured:
    """What policy and reference say of sampled replies; all [B, R], zero outside the reply."""

    log_probs: Tensor
    reference_log_probs: Tensor
    kl: Tensor
    """Exact KL to the reference, nats."""
    entropy: Tensor
    reference_states: Tensor
    """[B, R, h]: with the output embedding they give the reference's distribution again."""
    states: Tensor
    """[B, R, h] of the policy, without gradient."""
    graph: Tensor | None = None
    """[B, T, h]: all states of the policy with their graph, in the order of ``Rollout.groups``; for one backward pass
    through the policy as it was, where it was asked for."""


@dataclass(frozen=True)
class ScoredBatch:
    """A batch of this process from which advantages are made: what was sampled, measured, and its rewards."""

    policy: Policy
    critic: Critic
    rollout: Rollout
    measured: Measured
    scores: Tensor
    """[B]: one reward per reply, as training sees it."""
    draws: tuple[int, int, int] = (0, 0, 0)
    """Seed, step and the batch's first row: where random draws are derived from."""
    add: Add = identity
    """Sum over all processes."""


@dataclass(frozen=True)
class Experience:
    """Everything the epochs of updates need. B rows, R positions, H value heads."""

    rollout: Rollout
    measured: Measured
    heads: Tensor
    """[B, R, H]: each head's value before the update."""
    values: Tensor
    advantages: Tensor
    returns: Tensor
    positions: Tensor
    """[B, R]: positions whose value is trained."""
    shaped: Tensor
    """[B, R]: the reward that the advantages see."""


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


class Loss(NamedTuple):
    """A micro-batch's share of the loss and of the columns that describe it."""

    terms: Terms
    """Each term by its name; their sum is the loss."""
    per_token: Mapping[str, float] = {}
    """Sums over the reply tokens, by column; the loop divides them by the mini-batch's tokens."""
    per_value: Mapping[str, float] = {}
    """Sums over the values that are trained, by column; the loop divides them by their number."""


class Algorithm(Protocol):
    """An algorithm on the shared loop. Shares of micro-batches and processes add up to the mini-batch's."""

    names: tuple[str, ...]
    """The loss terms, in order."""
    token_columns: tuple[str, ...]
    """Columns of ``Loss.per_token``."""
    value_columns: tuple[str, ...]
    """Columns of ``Loss.per_value``."""
    needs_kl: bool
    """Whether ``ForwardOutput.kl`` is needed."""
    needs_entropy: bool
    """Whether ``ForwardOutput.entropy`` is needed."""
    reads: Literal["token", "last"]
    """The state that the critic reads: that before each token, or the one at the batch's last position."""
    over_padding: bool
    """Whether ``ForwardOutput.entropy`` covers padding."""

    def control(self, measurement: Measurement) -> Columns:
        """Turn the batch's measurement into this step's signal; return its columns."""
        ...

    def advantages(self, batch: ScoredBatch) -> Experience:
        """Turn rewards into advantages and returns."""
        ...

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Advance what moves with every update, by its sampled KL (k1, nats per token), before its step.

        Returns the loss columns that are plain numbers, without gradient, and the columns of its signal.
        """
        ...

    def loss(self, past: MiniBatch, present: ForwardOutput) -> Loss:
        """Return the micro-batch's loss."""
        ...

    def dump(self) -> dict[str, Any]:
        """Return the controller's state as plain numbers."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``dump`` gave."""
        ...
