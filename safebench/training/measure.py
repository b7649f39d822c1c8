"""Measure a batch of sampled replies under policy and reference: log-probabilities, exact KL, entropy, states."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor

from safebench.algorithms.base import Measured
from safebench.models.critic import reply_states
from safebench.models.generation import Cut, Rollout
from safebench.models.policy import Policy
from safebench.rl.kl import token_statistics


@torch.no_grad()
def measure(
    policy: Policy, rollout: Rollout, temperature: float, chunk: int | None = None, *, keep_graph: bool = False
) -> Measured:
    """Measure replies under policy and reference, ``chunk`` rows of similar length at a time.

    ``keep_graph`` keeps the policy's pass for the first update's gradient. All rows must then share one pass; otherwise
    the function raises ``ValueError``.
    """
    groups = rollout.groups(chunk)
    if keep_graph and len(groups) != 1:
        raise ValueError(f"one pass can be kept, not {len(groups)}")
    pieces, graph = [], None
    for rows in groups:
        cut = rollout.cut(rows)
        with policy.training() if keep_graph else contextlib.nullcontext(), torch.set_grad_enabled(keep_graph):
            hidden = policy.hidden_states(cut.ids, cut.attention)
        pieces.append(_measure_rows(policy, cut, temperature, hidden.detach()))
        graph = hidden if keep_graph else None
    width = rollout.mask.shape[1]
    back = torch.tensor([row for rows in groups for row in rows], device=rollout.ids.device).argsort()
    wide = [torch.cat([_widen(part, width) for part in parts])[back] for parts in zip(*pieces, strict=True)]
    return replace(Measured(*wide), graph=graph)


def _widen(x: Tensor, width: int) -> Tensor:
    """Pad [b, R', ...] with zeros to [b, R, ...]."""
    wide = x.new_zeros(x.shape[0], width, *x.shape[2:])
    wide[:, : x.shape[1]] = x
    return wide


def _measure_rows(policy: Policy, cut: Cut, temperature: float, hidden: Tensor) -> tuple[Tensor, ...]:
    """Measure the rows of one pass; ``hidden`` [b, T, h] are their states under the policy."""
    mask, replies = cut.mask, cut.mask.shape[1]
    states = reply_states(hidden, replies)
    with policy.as_reference():
        reference = reply_states(policy.hidden_states(cut.ids, cut.attention), replies)
    tokens, other = cut.tokens[mask], policy.reference_output
    found = token_statistics(
        states[mask],
        tokens,
        policy.output,
        reference=reference[mask],
        reference_output=other,
        temperature=temperature,
    )
    assert found.entropy is not None
    assert found.kl is not None
    assert found.reference_log_probs is not None
    measured = (found.log_probs, found.reference_log_probs, found.kl, found.entropy)
    return *(scatter_to_mask(x, mask) for x in measured), reference, states


def scatter_to_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Put the values of N kept tokens at their positions in [b, R], zero elsewhere; gradients are kept."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
