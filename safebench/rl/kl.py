"""Compute KL between policy and reference, and entropy: sampled estimates and exact sums over the vocabulary.

All results are in nats. log p is the policy's log-probability, log r the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class LogitForm(NamedTuple):
    """How a model turns the product of hidden state and output embedding into logits."""

    scale: float = 1.0
    softcap: float | None = None
    rows: int | None = None
    """Number of rows of the output embedding that are tokens; all rows if None."""


PRODUCT = LogitForm()
"""The unchanged product."""


@dataclass(frozen=True)
class OutputLayer:
    """Logits z = s (W h + b), or c tanh(z / c) with a soft-cap c (Gemma Team 2024, arXiv 2408.00118, section 2).

    ``weight`` W [V, h] and ``bias`` b [V] are used unchanged, in their own precision. ``form`` holds s, c and the
    number of rows of W that are tokens.
    """

    weight: Tensor
    bias: Tensor | None = None
    form: LogitForm = PRODUCT

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., h]."""
        return self._formed(torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias))

    def few(self, hidden: Tensor) -> Tensor:
        """Return the logits [b, V] of a few states [b, h].

        The large matrix is the first factor. On a CPU this order is several times faster for a few rows and a large
        vocabulary.
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
    Both inputs and the result have the same shape, in nats. k1 may be negative, k3 is never negative.
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
"""Maximum number of logits in a chunk: 64 MiB in float32, of which about six copies exist at once."""
TOKENS = 1024
"""Maximum number of tokens in a chunk."""


def chunk_of(vocabulary: int) -> int:
    """Return the number of tokens whose logits are computed at once with a vocabulary of this size."""
    return max(1, min(TOKENS, LOGITS // vocabulary))


class TokenStatistics(NamedTuple):
    """Log-probability, entropy and exact KL of N sampled tokens under policy and reference; [N] each, in nats."""

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
    """Return log-probability, entropy and exact KL of N tokens, with the logits of one chunk of tokens at a time.

    ``hidden`` [N, h] and ``reference`` [N, h] are the last hidden states of policy and reference.
    ``output`` is the layer that computes their logits [N, V]; both share it unless ``reference_output`` is given.
    ``tokens`` [N] are the sampled ids. Logits are divided by ``temperature``. The results are [N] each, in nats, in
    float32 or the weights' own precision if that is higher. Entropy is None unless ``with_entropy``. KL and the
    reference's log-probability are None without ``reference``.
    ``chunk`` is the number of tokens that are processed at once; the default is that of ``chunk_of``.
    Gradients reach ``hidden``, and the layer's weights if they are trained. With several chunks, each one is
    recomputed in the backward pass, so that memory stays at one chunk's logits.
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
