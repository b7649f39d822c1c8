"""KL between policy and reference, and entropy: sampled estimates and exact sums over the vocabulary.

All in nats. log p is the policy's log-probability, log r the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class LogitForm(NamedTuple):
    """What a model does to the product of hidden state and output embedding before it calls it logits."""

    scale: float = 1.0
    softcap: float | None = None
    rows: int | None = None
    """Rows of the output embedding that are tokens; all where None."""


PRODUCT = LogitForm()
"""The product itself."""


@dataclass(frozen=True)
class OutputLayer:
    """z = s (W h + b), and c tanh(z / c) where there is a soft-cap c (Gemma Team 2024, arXiv 2408.00118, section 2).

    ``weight`` W [V, h] and ``bias`` b [V] are used as they are, in their own precision; ``form`` holds s and c,
    and how many rows of W are tokens.
    """

    weight: Tensor
    bias: Tensor | None = None
    form: LogitForm = PRODUCT

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., h]."""
        return self._formed(torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias))

    def few(self, hidden: Tensor) -> Tensor:
        """Return the logits [b, V] of a few states [b, h].

        The large matrix comes first: on a CPU a few rows by a large vocabulary are several times faster so.
        """
        product = (self.weight @ hidden.to(self.weight.dtype).T).T.contiguous()
        return self._formed(product if self.bias is None else product + self.bias)

    def _formed(self, product: Tensor) -> Tensor:
        scale, softcap, rows = self.form
        product = product if rows is None else product[..., :rows]
        logits = product if scale == 1.0 else product * scale
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def sampled_kl(log_p: Tensor, log_r: Tensor, estimator: Literal["k1", "k3"] = "k1") -> Tensor:
    """Return a per-token estimate of KL(p || r) from the log-probabilities of tokens sampled from p.

    k1 = log p - log r;  k3 = r/p - 1 - log(r/p)  (Schulman 2020, "Approximating KL divergence").
    Both inputs and the result have one shape; nats. k1 may be negative, k3 may not.
    """
    log_ratio = log_r - log_p
    return -log_ratio if estimator == "k1" else torch.expm1(log_ratio) - log_ratio


def exact_kl(log_p: Tensor, log_r: Tensor) -> Tensor:
    """Return sum_v p(v) (log p(v) - log r(v)) over the last axis, the vocabulary; nats, at least 0.

    ``log_p`` and ``log_r`` are normalised log-probabilities of shape [..., V]; the result is [...].
    """
    return (log_p.exp() * (log_p - log_r)).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """Return -sum_v p(v) log p(v) over the last axis, the vocabulary; nats, in [0, ln V]."""
    return -(log_p.exp() * log_p).sum(-1)


LOGITS = 2**24
"""Logits of one chunk, at most: 64 MiB in float32, of which some six copies exist at once."""
TOKENS = 1024
"""Tokens of one chunk, at most."""


def chunk_of(vocabulary: int) -> int:
    """Return how many tokens' logits are computed at once with a vocabulary of that size."""
    return max(1, min(TOKENS, LOGITS // vocabulary))


class TokenStatistics(NamedTuple):
    """What the distributions of policy and reference say of N sampled tokens; [N] each, nats."""

    log_probs: Tensor
    entropy: Tensor | None
    kl: Tensor | None
    reference_log_probs: Tensor | None


def token_statistics(
    hidden: Tensor,
    tokens: Tensor,
    output: OutputLayer,
    *,
    reference: Tensor | None = None,
    reference_output: OutputLayer | None = None,
    with_entropy: bool = True,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> TokenStatistics:
    """Return log-probability, entropy and exact KL of N tokens without ever holding N x V logits.

    ``hidden`` [N, h] and ``reference`` [N, h] are the last hidden states of policy and reference,
    ``output`` the layer that makes their logits [N, V], which they share unless there is a ``reference_output``;
    ``tokens`` [N] the sampled ids. Logits are divided by ``temperature``. Returns [N] each, in nats, float32 or the
    weights' own precision where that is higher; entropy is None unless ``with_entropy``, KL and the
    reference's log-probability are None without ``reference``.
    ``chunk`` tokens are done at once, as many as ``chunk_of`` says by default.
    Gradients reach ``hidden``, and the layer's weights where they are trained; with several chunks each is recomputed
    in the backward pass, so that memory stays at one chunk's logits.
    """
    other = output if reference_output is None else reference_output
    size = chunk or chunk_of(len(output.weight))

    def piece(h: Tensor, t: Tensor, r: Tensor | None) -> TokenStatistics:
        log_p = _log_probs(h, output, temperature)
        chosen, spread = _chosen(log_p, t), entropy(log_p) if with_entropy else None
        if r is None:
            return TokenStatistics(chosen, spread, None, None)
        with torch.no_grad():
            log_r = _log_probs(r, other, temperature)
        return TokenStatistics(chosen, spread, exact_kl(log_p, log_r), _chosen(log_r, t))

    if len(tokens) <= size:
        return piece(hidden, tokens, reference)
    parts = []
    for start in range(0, len(tokens), size):
        part = slice(start, start + size)
        r = None if reference is None else reference[part]
        if torch.is_grad_enabled():
            parts.append(checkpoint(piece, hidden[part], tokens[part], r, use_reentrant=False))
        else:
            parts.append(piece(hidden[part], tokens[part], r))
    log_probs, *others = zip(*parts, strict=True)
    return TokenStatistics(torch.cat(log_probs), *map(_joined, others))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    kept = [part for part in parts if part is not None]
    return torch.cat(kept) if kept else None


def _chosen(log_p: Tensor, tokens: Tensor) -> Tensor:
    return log_p.gather(-1, tokens[:, None]).squeeze(-1)


def _log_probs(hidden: Tensor, output: OutputLayer, temperature: float) -> Tensor:
    logits = output(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
