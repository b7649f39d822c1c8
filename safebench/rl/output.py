"""The output layer: from a last hidden state to logits over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
