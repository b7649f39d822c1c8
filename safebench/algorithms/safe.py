"""SAFE (Maity 2026): PPO's terms and an asymmetric KL penalty whose controller looks at reward, entropy and KL."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from safebench.algorithms.base import ForwardOutput, Measurement, MiniBatch, Terms
from safebench.algorithms.ppo import PPO, _share
from safebench.algorithms.safe_controller import controller_of
from safebench.config import schema as s
from safebench.errors import UsageError
from safebench.rl.losses import straight_through


class SAFE(PPO):
    """SAFE (Maity 2026): PPO's terms, and the asymmetric KL penalty of its controller: gated, or with momentum."""

    needs_kl = True

    def __init__(self, settings: s.Settings) -> None:
        if settings.penalty is None:
            raise UsageError("the arm safe needs its controller's settings", "Add `penalty: {}`: the published ones.")
        super().__init__(settings)
        self.names = (*self.names, "penalty")
        self.penalty = settings.penalty
        self.form = controller_of(settings.penalty)
        self.state: Any = self.form.start
        self.signal: Any = None

    def control(self, measurement: Measurement) -> dict[str, float | str]:
        """Advance the controller by one batch; its signal holds for the batch's updates."""
        self.state, self.signal = self.form.update(self.state, measurement)
        return self.form.columns(self.signal)

    def terms(self, past: MiniBatch, present: ForwardOutput) -> Terms:
        """Return PPO's terms and the penalty: value at the controller's KL, gradient of the present KL."""
        assert self.signal is not None
        assert present.kl is not None
        value, slope = self.form.penalty(self.signal)
        share = float(past.mask.sum()) / past.token_count
        kl = _share(present.kl, past.mask, past.token_count)
        return super().terms(past, present) | {"penalty": straight_through(value * share, slope, kl)}

    def dump(self) -> dict[str, Any]:
        """Return the controller's state as plain numbers."""
        return asdict(self.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``dump`` gave."""
        self.state = self.form.load(state)
