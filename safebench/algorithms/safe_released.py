"""Implement SAFE and its baseline as in SAFE's released code, errors included (docs/paper-map.md, "The released code").

This module implements the differences that only the release has. Its other differences are settings that any algorithm
may use (experiments/safe-official.yaml). The differences here are:
1. there is one value and one advantage per sequence, read at the batch's last position, which is padding if a row ends
   early;
2. the controller is advanced before every update (twice per batch with two epochs), each time with the update's
   own sampled KL (k1) and with the batch's single entropy and reward, the reward in its own unit;
3. the controller's trackers start at zero;
4. the penalty is added to the loss as a plain number, so that threshold, gate, PID and phase have no effect
   on the gradient;
5. SAFE's entropy bonus averages over padding too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from safebench.algorithms.base import Columns, Experience, Measured, Measurement, MiniBatch, ScoredBatch
from safebench.algorithms.ppo import PPO
from safebench.algorithms.safe_controller import SafeState, controller_of
from safebench.config import schema as s
from safebench.errors import UsageError
from safebench.models.generation import Rollout
from safebench.rl.advantages import sequence_advantages


class ReleasedPPO(PPO):
    """PPO with one value and one advantage per sequence, read at its last position."""

    reads: Literal["token", "last"] = "last"

    def __init__(self, settings: s.Settings) -> None:
        if settings.advantage.whiten_rewards:
            raise UsageError(
                f"the algorithm {settings.algorithm} has one reward per sequence: advantage.whiten_rewards has nothing "
                "to whiten",
                "Leave advantage.whiten_rewards out.",
            )
        super().__init__(settings)

    @torch.no_grad()
    def advantages(self, batch: ScoredBatch) -> Experience:
        """Compute one return and one advantage per sequence from the scores [B], for all of its tokens.

        A = standardised (R - V). V is read at the last position of the batch's prompt and reply, which is padding if a
        row ends early. V is computed with dropout, as in the updates. In the experience, positions [B, 1] stand for
        the sequences, and the rollout identifies padding by the pad token.
        """
        rollout = batch.rollout.padded(int(batch.policy.tokenizer.pad_token_id))
        measured = _narrowed(batch.measured, rollout.mask, batch.policy.output.weight.dtype)
        returns = self.rewards(dataclasses.replace(batch, measured=measured), rollout.mask).sum(-1)
        heads = self._heads(batch, rollout)
        values = batch.critic.pessimistic(heads).squeeze(-1)
        advantages = returns - values
        if self.settings.advantage.whiten:
            advantages = sequence_advantages(returns, values, batch.add)
        return Experience(
            rollout,
            measured,
            heads,
            values[:, None],
            torch.where(rollout.mask, advantages[:, None], 0.0),
            returns[:, None],
            torch.ones_like(rollout.mask[:, :1]),
            returns[:, None],
        )

    def _heads(self, batch: ScoredBatch, rollout: Rollout) -> Tensor:
        """Return each head's value before the update, [B, 1, H]."""
        policy, critic, (seed, step, first) = batch.policy, batch.critic, batch.draws
        groups = rollout.groups(self.settings.update.microbatch)
        pieces = []
        with policy.training():
            for rows in groups:
                cut = rollout.cut(rows)
                hidden = policy.dropped_states(cut.ids, cut.attention, seed, step, 0, first + rows[0])
                read = critic.read(hidden, cut.mask.shape[1])
                pieces.append(critic.online(critic.features(read, cut.ids, cut.attention)))
        back = torch.tensor([row for rows in groups for row in rows], device=rollout.ids.device).argsort()
        return torch.cat(pieces)[back]


class ReleasedSAFE(ReleasedPPO):
    """The released baseline, with the penalty of SAFE's controller added to the loss as a number."""

    over_padding = True
    has_penalty = True

    def __init__(self, settings: s.Settings) -> None:
        if settings.penalty is None:
            raise UsageError(
                "the algorithm safe-official needs its controller's settings", "Add `penalty: {}`: the published ones."
            )
        if settings.penalty.momentum is not None:
            raise UsageError("the algorithm safe-official has no penalty with momentum", "use the algorithm safe.")
        super().__init__(settings)
        self.names = (*self.names, "penalty")
        self.controller = controller_of(settings.penalty)
        self.state: Any = SafeState(kl_short=0.0, kl_long=0.0)
        self.entropy, self.reward = 0.0, 0.0

    def control(self, measurement: Measurement) -> Columns:
        """Keep the batch's entropy and reward, which every update passes to the controller again."""
        self.entropy, self.reward = measurement.entropy_by_reply, measurement.raw_reward
        return {}

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Advance trackers, PID and phase by one update; return the penalty's value and the signal.

        The velocity's column stays empty: its unit is sigma_0 per step, which the release does not use.
        """
        self.state, signal = self.controller.update(self.state, Measurement(kl, self.entropy, self.reward))
        columns = self.controller.columns(signal)
        del columns["controller/velocity"]
        return {"loss/penalty": self.controller.penalty(signal)[0]}, columns

    def mean_entropy(self, past: MiniBatch, entropy: Tensor) -> Tensor:
        """Return the micro-batch's share of the mean entropy over reply positions, padding included."""
        return entropy.sum() / past.place_count

    def dump(self) -> dict[str, Any]:
        """Return the controller's state as plain numbers."""
        return dataclasses.asdict(self.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that ``dump`` returned."""
        self.state = self.controller.load(state)


def _narrowed(measured: Measured, mask: Tensor, dtype: torch.dtype) -> Measured:
    """Return the measurements at the positions of ``mask`` [B, R'], with log-probabilities in the release's precision.

    The release computes log-probabilities in the model's own precision before the updates and in float32 during them,
    so that in bfloat16 the first ratio is off by rounding.
    """
    narrow = {name: value[:, : mask.shape[1]] for name, value in vars(measured).items() if name != "graph"}
    for name in ("log_probs", "reference_log_probs"):
        narrow[name] = narrow[name].to(dtype).to(narrow[name].dtype)
    return dataclasses.replace(measured, **narrow)
