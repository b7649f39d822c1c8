"""Implement the critic: value heads, the features that they read, and the target network for bootstrapping."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from safebench.config import schema as s
from safebench.errors import UsageError
from safebench.models import seeding
from safebench.models.policy import Policy, positions
from safebench.rl.advantages import shift_left
from safebench.rl.value_heads import ValueHeads, polyak, soft_min


class Critic:
    """Values of reply positions. The heads read the policy's hidden states or those of a body of their own.

    ``body``, a decoder, and ``head``, which computes one value from a state, come from a previously trained value
    model. They are trained in place, not copied. Without them, they are initialised by the settings. ``reads`` selects
    the state before each token ("token"), or that of the last position alone, one value per sequence ("last").
    """

    def __init__(
        self,
        settings: s.Critic,
        policy: Policy,
        seed: int,
        body: nn.Module | None = None,
        head: nn.Module | None = None,
        *,
        reads: Literal["token", "last"] = "token",
    ) -> None:
        self.settings, self.reads = settings, reads
        if body is None and settings.body == "separate":
            _refuse_other_path(policy)
            body = _own_body(policy)
        self.body = body
        self.online = ValueHeads(
            policy.width,
            2 if settings.heads == "double" else 1,
            mlp=settings.head == "mlp",
            layer_norm=settings.layer_norm,
            draws=seeding.Draws("critic", seed),
            small=settings.init == "small",
        )
        self.online.to(policy.device, getattr(torch, settings.dtype))
        if head is not None:
            self.online.heads = nn.ModuleList([head.to(policy.device)])
        self.target = None if settings.target_decay is None else copy.deepcopy(self.online).requires_grad_(False)

    def read(self, hidden: Tensor, replies: int) -> Tensor:
        """Return the states from which values are read: those before each reply token, or the last position's.

        ``hidden`` [b, P + R, h] gives [b, R, h], or [b, 1, h] if the critic reads the last position.
        """
        return hidden[:, -1:] if self.reads == "last" else reply_states(hidden, replies)

    def features(self, read: Tensor, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the heads' input [b, R, h]: the policy's states from ``read``, or those of the critic's body."""
        if self.body is None:
            return read.detach() if self.settings.detach else read
        states = self.body(input_ids=ids, attention_mask=attention, position_ids=positions(attention), use_cache=False)
        return self.read(states.last_hidden_state, read.shape[1])

    def pessimistic(self, heads: Tensor) -> Tensor:
        """Return one value [...] from the heads' [..., H]: their soft minimum."""
        return soft_min(heads, self.settings.softmin_alpha)

    def next_values(self, features: Tensor, values: Tensor, keep: Tensor) -> Tensor:
        """Return the value of the state after each token, [B, R]: from the target network if there is one.

        Positions outside ``keep`` have no state and get the value zero.
        """
        source = values if self.target is None else self.pessimistic(self.target(features))
        return shift_left(torch.where(keep, source, 0.0))

    def advance_target(self, after: Literal["batch", "update"] = "batch") -> None:
        """Move the target towards the online heads (SAFE, equation 14) if the settings do so ``after`` this event."""
        if self.target is not None and self.settings.target_decay is not None and self.settings.target_follows == after:
            polyak(self.target, self.online, self.settings.target_decay)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the value loss trains."""
        for module in (self.online, self.body):
            if module is not None:
                yield from (p for p in module.parameters() if p.requires_grad)

    def state(self) -> dict[str, Any]:
        """Return all weights, for a checkpoint."""
        modules = {"online": self.online, "target": self.target, "body": self.body}
        return {name: module.state_dict() for name, module in modules.items() if module is not None}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the weights of a checkpoint."""
        modules = {"online": self.online, "target": self.target, "body": self.body}
        for name, module in modules.items():
            if module is not None:
                module.load_state_dict(state[name])


def reply_states(hidden: Tensor, replies: int) -> Tensor:
    """Return the states before each reply token, [B, R, h], of a sequence's hidden states [B, P + R, h]."""
    return hidden[:, -replies - 1 : -1]


def _refuse_other_path(policy: Policy) -> None:
    """Raise ``UsageError`` if the policy does not run by the standard path, which a separate body always uses."""
    if policy.path.captured or policy.path.padding != "left":
        raise UsageError(
            f"critic.body is separate, and {type(policy.base).__name__} is not reached by its decoder's last state",
            "Use --set critic.body=shared.",
        )


def _own_body(policy: Policy) -> nn.Module:
    with policy.as_reference():
        body: nn.Module = copy.deepcopy(policy.base.get_decoder())
    for module in body.modules():
        for name, child in list(module.named_children()):
            if hasattr(child, "base_layer"):
                setattr(module, name, child.base_layer)
    return body.float().requires_grad_(True)
