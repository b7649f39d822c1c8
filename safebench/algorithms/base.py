"""Define the interface of an algorithm on the shared loop and its inputs: scored batch, mini-batches, model outputs."""

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
    """The input of a controller: statistics of one batch."""

    kl: float
    """Exact KL to the reference, nats per token, mean over the batch."""
    entropy: float
    """Nats per token, mean over the batch."""
    reward: float
    """Mean reward in units of sigma_0."""
    raw_reward: float = math.nan
    """Mean reward in the reward's own unit."""
    entropy_by_reply: float = math.nan
    """Nats per token, mean over replies of each reply's own mean."""


@dataclass(frozen=True)
class Measured:
    """Measurements of sampled replies under policy and reference; all [B, R], zero outside the reply."""

    log_probs: Tensor
    reference_log_probs: Tensor
    kl: Tensor
    """Exact KL to the reference, nats."""
    entropy: Tensor
    reference_states: Tensor
    """[B, R, h]: the reference's distribution is recomputed from these and the output embedding."""
    states: Tensor
    """[B, R, h]: states of the policy, without gradient."""
    graph: Tensor | None = None
    """[B, T, h]: all states of the policy with their graph, in the order of ``Rollout.groups``. They serve one backward
    pass through the policy as it was measured, and are None unless requested."""


@dataclass(frozen=True)
class ScoredBatch:
    """A batch of this process from which advantages are computed: its replies, measurements and rewards."""

    policy: Policy
    critic: Critic
    rollout: Rollout
    measured: Measured
    scores: Tensor
    """[B]: one reward per reply, as used in training."""
    draws: tuple[int, int, int] = (0, 0, 0)
    """Seed, step and the batch's first row, from which random draws are derived."""
    add: Add = identity
    """Sum over all processes."""


@dataclass(frozen=True)
class Experience:
    """All inputs of the update epochs. B rows, R positions, H value heads."""

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
    """[B, R]: the reward from which the advantages are computed."""


@dataclass(frozen=True)
class ForwardOutput:
    """Outputs of the current policy and critic for a micro-batch; [b, R], zero outside the reply."""

    log_probs: Tensor
    entropy: Tensor | None
    kl: Tensor | None
    heads: Tensor
    """[b, R, H], or [b, 1, H] if the critic reads the last position."""


@dataclass(frozen=True)
class MiniBatch:
    """The same rows as measured before the updates, and counts over the whole mini-batch of all processes."""

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
    """Number of reply positions, padding included."""


class Loss(NamedTuple):
    """A micro-batch's share of the loss and of the columns that describe it."""

    terms: Terms
    """Each term by its name; their sum is the loss."""
    per_token: Mapping[str, float] = {}
    """Sums over the reply tokens, by column; the loop divides them by the mini-batch's number of tokens."""
    per_value: Mapping[str, float] = {}
    """Sums over the trained values, by column; the loop divides them by the number of trained values."""


class Algorithm(Protocol):
    """An algorithm on the shared loop. The losses of micro-batches and processes add up to the mini-batch's loss."""

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
    """The state that the critic reads: the one before each token, or the one at the batch's last position."""
    over_padding: bool
    """Whether ``ForwardOutput.entropy`` covers padding."""

    def control(self, measurement: Measurement) -> Columns:
        """Turn the batch's measurement into this step's signal; return its columns."""
        ...

    def advantages(self, batch: ScoredBatch) -> Experience:
        """Turn rewards into advantages and returns."""
        ...

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Advance the state that changes with every update, by the update's sampled KL (k1, nats per token).

        The call comes before the optimizer step. It returns the loss columns that are plain numbers, without gradient,
        and the columns of the controller's signal.
        """
        ...

    def loss(self, past: MiniBatch, present: ForwardOutput) -> Loss:
        """Return the micro-batch's loss."""
        ...

    def dump(self) -> dict[str, Any]:
        """Return the controller's state as plain numbers."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that ``dump`` returned."""
        ...
