"""Implement SAFE (Maity 2026, arXiv 2602.04651): PPO's terms and an asymmetric KL penalty set by a controller."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from safebench.algorithms.base import Columns, ForwardOutput, Loss, Measurement, MiniBatch
from safebench.algorithms.ppo import PPO, share
from safebench.algorithms.safe_controller import controller_of
from safebench.config import schema as s
from safebench.errors import UsageError
from safebench.rl.losses import straight_through


class SAFE(PPO):
    """PPO with the penalty of SAFE's controller: the gated form (equations 5 to 10), or the form with momentum (12)."""

    needs_kl = True
    has_penalty = True

    def __init__(self, settings: s.Settings) -> None:
        if settings.penalty is None:
            raise UsageError(
                "the algorithm safe needs its controller's settings", "Add `penalty: {}`: the published ones."
            )
        super().__init__(settings)
        self.names = (*self.names, "penalty")
        self.controller = controller_of(settings.penalty)
        self.state: Any = self.controller.start
        self.signal: Any = None

    def control(self, measurement: Measurement) -> Columns:
        """Advance the controller by one batch; its signal applies to all updates on the batch."""
        self.state, self.signal = self.controller.update(self.state, measurement)
        return self.controller.columns(self.signal)

    def loss(self, past: MiniBatch, present: ForwardOutput) -> Loss:
        """Return PPO's loss and the penalty: value at the controller's KL, gradient of the current KL."""
        assert self.signal is not None
        assert present.kl is not None
        value, slope = self.controller.penalty(self.signal)
        part = float(past.mask.sum()) / past.token_count
        kl = share(present.kl, past.mask, past.token_count)
        found = super().loss(past, present)
        return found._replace(terms=found.terms | {"penalty": straight_through(value * part, slope, kl)})

    def dump(self) -> dict[str, Any]:
        """Return the controller's state as plain numbers."""
        return asdict(self.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that ``dump`` returned."""
        self.state = self.controller.load(state)
