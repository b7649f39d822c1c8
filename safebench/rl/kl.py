"""KL between policy and reference, and entropy: sampled estimates and exact sums over the vocabulary.

All in nats. log p is the policy's log-probability, log r the reference's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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


def token_statistics(
    hidden: Tensor,
    tokens: Tensor,
    weight: Tensor,
    *,
    reference: Tensor | None = None,
    reference_weight: Tensor | None = None,
    with_entropy: bool = True,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return log-probability, entropy and exact KL of N tokens without ever holding N x V logits.

    ``hidden`` [N, h] and ``reference`` [N, h] are the last hidden states of policy and reference,
    ``weight`` [V, h] the output embedding, which they share unless there is a ``reference_weight``; ``tokens``
    [N] the sampled ids. Logits are divided by ``temperature``. Returns [N] each, in nats, float32 or the weights'
    own precision where that is higher; entropy is None unless ``with_entropy``, KL is None without ``reference``.
    Gradients reach ``hidden``, and ``weight`` where it is trained; with several chunks each is recomputed in the
    backward pass, so that memory stays at one chunk's logits.
    """
    other = weight if reference_weight is None else reference_weight

    def piece(h: Tensor, t: Tensor, r: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        log_p = _log_probs(h, weight, temperature)
        chosen = log_p.gather(-1, t[:, None]).squeeze(-1)
        kl = None
        if r is not None:
            with torch.no_grad():
                log_r = _log_probs(r, other, temperature)
            kl = exact_kl(log_p, log_r)
        return chosen, entropy(log_p) if with_entropy else None, kl

    if len(tokens) <= chunk:
        return piece(hidden, tokens, reference)
    parts = []
    for start in range(0, len(tokens), chunk):
        part = slice(start, start + chunk)
        r = None if reference is None else reference[part]
        if torch.is_grad_enabled():
            parts.append(checkpoint(piece, hidden[part], tokens[part], r, use_reentrant=False))
        else:
            parts.append(piece(hidden[part], tokens[part], r))
    chosen, entropies, kls = zip(*parts, strict=True)
    return (
        torch.cat(chosen),
        torch.cat(entropies) if with_entropy else None,
        torch.cat(kls) if reference is not None else None,
    )


def _log_probs(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden.to(weight.dtype), weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
