"""What TRL 1.12.0's PPOTrainer computes and keeps without need, and ours does not."""

from __future__ import annotations

import functools
import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.parity_trl import parts
from tests.support.tiny import END, VOCABULARY
from tests.support.trl_defects import ROWS, Check, Kind, both, make, prompts, quiet, train

LONG_PROMPT, LONG_REPLY, CHUNK = 30, 140, 1024


class Widest(TorchDispatchMode):
    """Watches for the tensor with the most rows of the vocabulary's width."""

    rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and look at what comes out."""
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return out


@dataclass
class Costs:
    """What one batch took."""

    rows: int
    """Of the tallest tensor of logits."""
    layers: int
    """Passes that kept every layer's hidden states."""
    collections: int
    """Calls of Python's garbage collector."""


@functools.cache
def costs(kind: Kind) -> Costs:
    """Train on one batch of long prompts and long replies."""
    made, kept = parts(likely=((END, -20.0),)), []

    def look(module: Any, inputs: Any, more: dict[str, Any], output: Any) -> None:
        kept.append(output.hidden_states is not None)

    made.policy.model.register_forward_hook(look, with_kwargs=True)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(gc, "collect", wraps=lambda: 0) as collect:
        trainer = make(kind, Path(folder), made, dataset=prompts(length=LONG_PROMPT), response_length=LONG_REPLY)
        before = collect.call_count
        with Widest() as widest, quiet(kind):
            trainer.train()
    return Costs(widest.rows, sum(kept), collect.call_count - before)


def logits_come_in_pieces(kind: Kind, folder: Path) -> None:
    """Never of all replies at once: log-probabilities are B·R numbers, scores B·R·V."""
    assert costs(kind).rows <= CHUNK, f"logits of {costs(kind).rows} positions at once"


def prompts_need_no_logits(kind: Kind, folder: Path) -> None:
    """At most one row of logits for each reply token."""
    assert costs(kind).rows <= ROWS * LONG_REPLY, f"logits of {costs(kind).rows} positions at once"


def only_the_last_hidden_states_are_kept(kind: Kind, folder: Path) -> None:
    """Not those of every layer."""
    assert costs(kind).layers == 0, f"{costs(kind).layers} passes keep every layer's states"


def the_garbage_collector_is_left_alone(kind: Kind, folder: Path) -> None:
    """It takes most of the time of a small run."""
    assert costs(kind).collections == 0, f"{costs(kind).collections} collections"


def a_second_model_is_not_needed(kind: Kind, folder: Path) -> None:
    """Without a value model the critic sits on the policy's own states."""
    made = parts()
    made.value = None  # type: ignore[assignment]
    assert train(kind, make(kind, folder, made))[0]["loss/value_avg"] > 0


SEEN = ROWS * (LONG_PROMPT + LONG_REPLY)
CHECKS: dict[Check, tuple[type[Exception], str]] = {
    logits_come_in_pieces: (AssertionError, f"logits of {SEEN} positions at once"),
    prompts_need_no_logits: (AssertionError, f"logits of {SEEN} positions at once"),
    only_the_last_hidden_states_are_kept: (AssertionError, "2 passes keep every layer's states"),
    the_garbage_collector_is_left_alone: (AssertionError, "2 collections"),
    a_second_model_is_not_needed: (AttributeError, "'NoneType' object has no attribute"),
}


test_trl_spends_it, test_ours_does_not = both(CHECKS)
