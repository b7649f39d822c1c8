"""Converts this package's columns to TRL's log keys, and combines the steps since the last log entry into one entry.

Each key has TRL's meaning over reply tokens alone. Where TRL 1.12.0 averages over padding too (policy/approxkl_avg,
policy/entropy_avg, val/ratio), the mean here is over reply tokens; where TRL averages over micro-batches, the mean here
is over updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safebench.algorithms.base import Columns, Experience, ForwardOutput, Loss, Measured, MiniBatch
from safebench.algorithms.ppo import PPO
from safebench.algorithms.safe import SAFE
from safebench.config.schema import Settings
from safebench.models.generation import Rollout
from safebench.rl.kl import sampled_kl
from safebench.training.loop import Loop

Row = Mapping[str, float | str | None]
Logs = dict[str, float | str]

LAST = ("step", "episodes", "episode", "tokens", "eps", "lr", "update/learning_rate")
"""Counters and the like: an entry shows the value of the last step."""
LARGEST = ("kl/max", "update/ratio_max", "memory/peak")

MEANING: dict[str, str] = {
    "objective/kl": "sampled KL to the reference by kl_estimator, summed over a reply's tokens, mean over replies",
    "objective/entropy": "-log p of the sampled tokens, summed over a reply, mean over replies",
    "objective/scores": "reward less missing_eos_penalty, mean over replies",
    "objective/non_score_reward": "-kl_coef x objective/kl",
    "objective/rlhf_reward": "objective/scores + objective/non_score_reward",
    "policy/approxkl_avg": "half the mean squared log-ratio over reply tokens, mean over updates",
    "policy/clipfrac_avg": "share of reply tokens whose ratio the clip cut, mean over updates",
    "policy/entropy_avg": "entropy over the vocabulary per reply token, under the policy that sampled: "
    "the value of the first pass, which TRL averages with those of the passes after it",
    "loss/policy_avg": "policy loss, mean over updates",
    "loss/value_avg": "value loss without its coefficient, mean over updates; left out where the coefficient is 0",
    "val/clipfrac_avg": "share of values whose clipped error is the larger one, mean over updates",
    "val/ratio": "ratio, mean over reply tokens and updates",
    "val/ratio_var": "variance over updates of their mean ratios",
    "val/num_eos_tokens": "end tokens in the replies, stop token included, padding not",
    "lr": "learning rate of the step's updates",
    "episode": "replies sampled so far",
    "eps": "replies per second since train() began",
}


def trl_keys(row: Row, batch: Batch, settings: Settings, *, ratio_variance: float, seconds: float, begun: int) -> Logs:
    """Return TRL's keys for a step.

    ``begun``: replies sampled before ``train()`` was called. ``seconds``: the time since that call.
    """
    replies, episode = settings.rollout.batch, _number(row["episodes"])
    kl, scores = batch.kl / replies, batch.scores / replies
    non_score = -settings.reward.kl_coefficient * kl
    weight = settings.loss.value_coefficient
    found: dict[str, float | str | None] = {
        "objective/kl": kl,
        "objective/entropy": row["reply/surprisal"],
        "objective/scores": scores,
        "objective/non_score_reward": non_score,
        "objective/rlhf_reward": scores + non_score,
        "policy/approxkl_avg": row["update/approx_kl"],
        "policy/clipfrac_avg": row["update/clip_fraction"],
        "policy/entropy_avg": row["entropy/mean"],
        "loss/policy_avg": row["loss/policy"],
        "loss/value_avg": _number(row["loss/value"]) / weight if weight else None,
        "val/clipfrac_avg": row["update/value_clip_fraction"],
        "val/ratio": row["update/ratio_mean"],
        "val/ratio_var": ratio_variance,
        "val/num_eos_tokens": batch.end_tokens,
        "lr": row["update/learning_rate"],
        "episode": int(episode),
        "eps": int((episode - begun) / seconds) if seconds > 0 else 0,
    }
    return {key: value for key, value in found.items() if value is not None}


def entry(steps: Sequence[Mapping[str, float | str | None]]) -> Logs:
    """Return one log entry for the steps since the last one.

    Counters and texts have the value of the last step, maxima the largest value, all other keys the mean. A value that
    was not measured or is not finite is left out.
    """
    keys = dict.fromkeys(key for row in steps for key in row)
    columns = {key: [row[key] for row in steps if row.get(key) is not None] for key in keys}
    return {key: value for key, found in columns.items() if found and (value := _joined(key, found)) is not None}


def _joined(key: str, found: Sequence[float | str | None]) -> float | str | None:
    last = found[-1]
    if key in LAST or isinstance(last, str):
        return last
    values = [_number(value) for value in found]
    joined = max(values) if key in LARGEST else math.fsum(values) / len(values)
    return joined if math.isfinite(joined) else None


def _number(value: float | str | None) -> float:
    assert isinstance(value, (int, float))
    return value


class _Watched:
    """Keeps the mean ratio of each update of a step: this process's sum, divided by the tokens of all processes."""

    ratio = 0.0

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)  # type: ignore[call-arg]
        self.ratios: list[float] = []

    def loss(self, past: MiniBatch, present: ForwardOutput) -> Loss:
        """Return the loss, and add the micro-batch's ratios to those of its update."""
        found: Loss = super().loss(past, present)  # type: ignore[misc]
        self.ratio += found.per_token["update/ratio_mean"] / past.token_count
        return found

    def control_update(self, kl: float) -> tuple[dict[str, float], Columns]:
        """Keep the mean ratio of the update, and start the next update."""
        self.ratios.append(self.ratio)
        self.ratio = 0.0
        found: tuple[dict[str, float], Columns] = super().control_update(kl)  # type: ignore[misc]
        return found


class WatchedPPO(_Watched, PPO):
    """PPO that keeps the mean ratio of each update."""


class WatchedSAFE(_Watched, SAFE):
    """SAFE that keeps the mean ratio of each update."""


@dataclass(frozen=True)
class Batch:
    """Sums over a batch's replies, all processes."""

    kl: float
    """KL by the estimator that the reward uses, summed over all reply tokens."""
    scores: float
    """Rewards minus the penalties for a missing stop token."""
    end_tokens: float


class WatchedLoop(Loop):
    """The loop, extended by what TRL logs of a batch.

    ``missing`` is the penalty on replies without the end token ``end_id``. Set it only if no token stops replies: the
    loop's own penalty is on replies that did not stop.
    """

    missing: float = 0.0
    end_id: int | None = None
    batch = Batch(0.0, 0.0, 0.0)

    def _advantages(self, rollout: Rollout, measured: Measured, rewards: Tensor) -> Experience:
        reward = self.settings.reward
        ends = (rollout.tokens == (-1 if self.end_id is None else self.end_id)) & rollout.mask
        scores = rewards - self.missing * (~ends.any(-1)).to(rewards.dtype)
        penalised = scores - reward.missing_eos_penalty * (~rollout.ended).to(scores.dtype)
        kl = sampled_kl(measured.log_probs, measured.reference_log_probs, reward.kl_estimator)
        sums = torch.stack([kl[rollout.mask].double().sum(), penalised.double().sum(), ends.double().sum()])
        self.batch = Batch(*self.processes.add(sums).tolist())
        self.algorithm.ratios = []  # type: ignore[attr-defined]
        return super()._advantages(rollout, measured, scores)

    def ratio_variance(self) -> float:
        """Return the unbiased variance of the mean ratio over the step's updates; 0 if there was one update."""
        ratios: list[float] = self.algorithm.ratios  # type: ignore[attr-defined]
        means = self.processes.add(torch.tensor(ratios, dtype=torch.float64, device=self.world.policy.device))
        return float(means.var()) if len(ratios) > 1 else 0.0
