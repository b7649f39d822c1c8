"""SAFE as its released code behaves: the controller moves with every update, and its penalty has no gradient.

What else the release does differently are settings that any arm may use (experiments/safe-official.yaml); this is
what is its own:
1. the controller is advanced before every update, twice per batch with two epochs, each time by the update's
   own sampled KL (k1) and by the batch's one entropy and reward, the reward in its own unit;
2. its trackers start at zero;
3. the penalty is added to the loss as a plain number, so that threshold, gate, PID and phase steer nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from safebench.algorithms.base import Columns, Measurement
from safebench.algorithms.ppo import PPO
from safebench.algorithms.safe_controller import SafeState, controller_of
from safebench.config import schema as s
from safebench.errors import UsageError


class ReleasedSAFE(PPO):
    """PPO's terms, and the number that SAFE's controller adds to their sum."""

    def __init__(self, settings: s.Settings) -> None:
        if settings.penalty is None:
            raise UsageError(
                "the arm safe-official needs its controller's settings", "Add `penalty: {}`: the published ones."
            )
        if settings.penalty.momentum is not None:
            raise UsageError("the arm safe-official has no penalty with momentum", "Use the arm safe.")
        super().__init__(settings)
        self.names = (*self.names, "penalty")
        self.form = controller_of(settings.penalty)
        self.state: Any = SafeState(kl_short=0.0, kl_long=0.0)
        self.entropy, self.reward = 0.0, 0.0

    def control(self, measurement: Measurement) -> Columns:
        """Keep the batch's entropy and reward, which every update hands to the controller again."""
        self.entropy, self.reward = measurement.entropy_by_reply, measurement.raw_reward
        return {}

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Advance trackers, PID and phase by one update; return the penalty's value and the signal.

        The velocity's column stays empty: it is in units of sigma_0, the release's is not.
        """
        self.state, signal = self.form.update(self.state, Measurement(kl, self.entropy, self.reward))
        columns = self.form.columns(signal)
        del columns["controller/velocity"]
        return {"loss/penalty": self.form.penalty(signal)[0]}, columns

    def dump(self) -> dict[str, Any]:
        """Return the controller's state as plain numbers."""
        return asdict(self.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``dump`` gave."""
        self.state = self.form.load(state)
