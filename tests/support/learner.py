"""One learner on the tiny policy: critic, arm and updater around a batch of experience."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safebench.algorithms.base import Algorithm, Experience, Measurement, ScoredBatch
from safebench.algorithms.ppo import PPO
from safebench.algorithms.safe import SAFE
from safebench.config import schema as s
from safebench.models.critic import Critic
from safebench.models.policy import Policy
from safebench.training.distributed import Processes
from safebench.training.measure import measure
from safebench.training.update import UpdateMetrics, Updater
from tests.support.tiny import PROMPTS, tiny_policy, tiny_rollout, tiny_settings

SCORES = [1.0, -0.5, 0.3, 0.0, 2.0, -1.0, 0.7, 0.1]
ALGORITHMS: dict[str, type[PPO]] = {"ppo": PPO, "safe": SAFE}


@dataclass
class Learner:
    """The parts of a loop that learn."""

    settings: s.Settings
    policy: Policy
    critic: Critic
    algorithm: Algorithm
    updater: Updater

    def experience(self, scores: Sequence[float] = SCORES) -> Experience:
        """Sample a batch, measure it, let the controller see it, and appraise it."""
        rollout = tiny_rollout(self.policy, PROMPTS, self.settings.rollout.reply_tokens)
        temperature = self.settings.rollout.temperature
        measured = measure(self.policy, rollout, temperature, self.settings.update.microbatch)
        kl, entropy = (float(x[rollout.mask].mean()) for x in (measured.kl, measured.entropy))
        self.algorithm.control(Measurement(kl, entropy, sum(scores) / len(scores)))
        batch = ScoredBatch(self.policy, self.critic, rollout, measured, torch.tensor(scores))
        return self.algorithm.advantages(dataclasses.replace(batch, add=self.updater.processes.add))

    def run(self, experience: Experience, step: int = 1, *, gradient_norms: bool = False) -> UpdateMetrics:
        """Do the updates of one step."""
        return self.updater.run(step, experience, gradient_norms=gradient_norms)

    def policy_weights(self) -> Tensor:
        """Return a copy of the adapter, flat."""
        return torch.cat([p.detach().flatten() for p in self.updater.policy_parameters])

    def critic_weights(self) -> Tensor:
        """Return a copy of the critic, flat."""
        return torch.cat([p.detach().flatten() for p in self.updater.critic_parameters])

    def gradients(self) -> Tensor:
        """Return the gradients that the last update used, flat; absent ones are zero."""
        owners = [*self.updater.policy_parameters, *self.updater.critic_parameters]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in owners])

    def kl(self, experience: Experience) -> float:
        """Return the present policy's exact KL on the sampled replies."""
        return float(measure(self.policy, experience.rollout, 1.0).kl[experience.rollout.mask].mean())


def learner(
    settings: s.Settings, policy: Policy, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
) -> Learner:
    """Put a learner together; the critic takes the policy's precision where it is float64."""
    critic = Critic(settings.critic, policy, settings.seed)
    if policy.output_weight.dtype == torch.float64:
        for module in (critic.online, critic.target, critic.body):
            if module is not None:
                module.double()
    algorithm = ALGORITHMS[settings.algorithm](settings)
    updater = Updater(settings, policy, critic, algorithm, Processes(settings.compute))
    groups = [{"params": group["params"], "lr": group["lr"]} for group in updater.optimizer.param_groups]
    updater.optimizer = optimizer(groups, weight_decay=settings.update.weight_decay)  # type: ignore[call-arg]
    return Learner(settings, policy, critic, algorithm, updater)


SAFE_LIKE: dict[str, Any] = {
    "critic": {"heads": "double", "head": "mlp", "layer_norm": True, "target_decay": 0.95},
    "loss": {"value_coefficient": 0.5, "value_huber": 0.5, "value_combine": "mean", "entropy_coefficient": 0.01},
}
ONE: dict[str, Any] = {"epochs": 1, "max_grad_norm": None, "critic_max_grad_norm": None}
"""A single update without clipping."""


def make(
    arm: str = "ppo",
    *,
    policy: dict[str, Any] | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    **sections: Any,
) -> Learner:
    """Make a learner whose policy has left its reference; the arm safe gets its own critic and loss."""
    base = SAFE_LIKE if arm == "safe" else {}
    merged = {**base, **{name: {**base.get(name, {}), **section} for name, section in sections.items()}}
    return learner(tiny_settings(arm, **merged), tiny_policy(**{"moved": 0.3, **(policy or {})}), optimizer)


def without_advantage(experience: Experience) -> Experience:
    """Return the experience with nothing to gain: the surrogate has no gradient."""
    return dataclasses.replace(experience, advantages=torch.zeros_like(experience.advantages))


def nudge(policy: Policy, size: float = 0.2, seed: int = 11) -> None:
    """Move the adapter by noise, so that ratios leave 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
