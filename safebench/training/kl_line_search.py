"""Keep optimizer steps below a KL ceiling: take the step, measure its KL, and shorten it if necessary.

This enforces SAFE, equation 13: after every step the exact KL on the batch is at most max(ceiling, KL before
the step), for any learning rate. Three choices:

1. The optimizer's own state (Adam's moments and step count) stays as the whole step left it. It averages gradients,
   which were computed at the policy's actual weights. They stay valid when the step is shortened.
2. The critic's step is not shortened. Its heads do not enter the KL, and it regresses onto returns of the batch,
   which do not depend on the length of the policy's step.
3. Weight decay of the policy is part of its step, and is shortened with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from safebench.algorithms.base import Experience
from safebench.config import schema as s
from safebench.models.critic import reply_states
from safebench.models.policy import Policy
from safebench.rl.kl import token_statistics
from safebench.training.distributed import Processes
from safebench.training.measure import scatter_to_mask


@dataclass(frozen=True)
class StepResult:
    """The kept share of a step, the KL at this share, and the number of measurements."""

    scale: float
    """In [0, 1]: 1 keeps the whole step, 0 undoes it."""
    kl: float
    """Nats per token."""
    passes: int


def backtrack(kl_at: Callable[[float], float], before: float, ceiling: float, trials: int) -> StepResult:
    """Return the first share s of a step, from 1 downwards, with KL(s) <= max(ceiling, before).

    ``kl_at(s)`` is the KL at theta_old + s (theta_new - theta_old), ``before`` the KL at theta_old, and ``ceiling``
    > 0; nats per token. The second s is the published min(1, ceiling / KL(1)), a linear guess. Each further s is half
    of the previous one. At most ``trials`` values are tried after the whole step. Then s = 0, which needs no
    measurement.

    KL(s) may rise and fall with s. A KL that is not finite counts as above every ceiling, and the second s is then
    1/2. The returned KL was measured, or is ``before`` with s = 0. If ``before`` is not finite, only the ceiling
    applies.
    """
    limit = max(ceiling, before)  # this order of arguments keeps NaN from becoming the limit
    if limit == math.inf:
        limit = ceiling
    scale, kl = 1.0, kl_at(1.0)
    for passes in range(1, trials + 1):
        if kl <= limit:
            return StepResult(scale, kl, passes)
        scale = ceiling / kl if passes == 1 and math.isfinite(kl) else scale / 2
        kl = kl_at(scale)
    return StepResult(scale, kl, trials + 1) if kl <= limit else StepResult(0.0, before, trials + 1)


class Stepper(Protocol):
    """Interface of the classes that make optimizer steps."""

    def begin(self, experience: Experience) -> None:
        """Set the batch for the next steps."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make one step."""
        ...

    def columns(self) -> dict[str, float]:
        """Return the columns of the batch's steps."""
        ...


class Plain:
    """Makes steps without changing them."""

    def begin(self, experience: Experience) -> None:
        """Do nothing."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make one step."""
        optimizer.step()

    def columns(self) -> dict[str, float]:
        """Return no columns."""
        return {}


class KLLineSearch:
    """Shortens steps until their KL on the batch is at most max(ceiling, KL before the step)."""

    def __init__(
        self, settings: s.Settings, preview: s.Preview, policy: Policy, processes: Processes
    ) -> None:
        self.settings, self.preview, self.policy, self.processes = settings, preview, policy, processes
        self.parameters: list[nn.Parameter] = list(policy.trainable().values())
        self.experience: Experience | None = None
        self.kl = 0.0
        self.taken: list[StepResult] = []

    def begin(self, experience: Experience) -> None:
        """Set the batch; the KL before its first step is in the batch's measurements."""
        self.experience, self.taken = experience, []
        self.kl = self._mean(experience.measured.kl)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make one step and shorten it if the KL exceeds the ceiling; a whole step takes one forward pass.

        Call it outside ``policy.training()``: the KL is that of the sampling policy, without dropout.
        """
        old = _copies(self.parameters)
        optimizer.step()
        new: list[Tensor] = []

        def kl_at(scale: float) -> float:
            if scale < 1.0:
                new.extend([] if new else _copies(self.parameters))
                _place(self.parameters, [torch.lerp(a, b, scale) for a, b in zip(old, new, strict=True)])
            return self._mean(self._measure())

        taken = backtrack(kl_at, self.kl, self.preview.ceiling, self.preview.trials)
        if taken.scale == 0.0:
            _place(self.parameters, old)
        self.kl = taken.kl
        self.taken.append(taken)

    def columns(self) -> dict[str, float]:
        """Return the KL after the last step, the share of shortened steps, their smallest scale and all passes."""
        if not self.taken:
            return {}
        scales = [taken.scale for taken in self.taken]
        return {
            "preview/kl": self.kl,
            "preview/shrunk": sum(scale < 1.0 for scale in scales) / len(scales),
            "preview/scale": min(scales),
            "preview/passes": float(sum(taken.passes for taken in self.taken)),
        }

    @torch.no_grad()
    def _measure(self) -> Tensor:
        """Return the current policy's exact KL, [B, R], computed in the same groups of rows as in ``measure``.

        Equal groups give bit-identical results: an unchanged policy has the KL that was measured before.
        """
        assert self.experience is not None
        rollout, reference = self.experience.rollout, self.experience.measured.reference_states
        kl = torch.zeros_like(self.experience.measured.kl)
        for rows in rollout.groups(self.settings.update.microbatch):
            cut = rollout.cut(rows)
            mask, replies = cut.mask, cut.mask.shape[1]
            states = reply_states(self.policy.hidden_states(cut.ids, cut.attention), replies)
            found = token_statistics(
                states[mask],
                cut.tokens[mask],
                self.policy.output,
                reference=reference[rows, :replies][mask],
                reference_output=self.policy.reference_output,
                with_entropy=False,
                temperature=self.settings.rollout.temperature,
            )
            assert found.kl is not None
            kl[rows, :replies] = scatter_to_mask(found.kl, mask)
        return kl

    def _mean(self, kl: Tensor) -> float:
        """Return the mean over all reply tokens of all processes, the same number in each process."""
        assert self.experience is not None
        mask = self.experience.rollout.mask
        parts = self.processes.gather([(float(kl[mask].double().sum()), int(mask.sum()))])
        return float(sum(total for total, _ in parts) / max(1, sum(count for _, count in parts)))


def stepper(settings: s.Settings, policy: Policy, processes: Processes) -> Stepper:
    """Return the stepper that the settings select."""
    preview = settings.update.preview
    return Plain() if preview is None else KLLineSearch(settings, preview, policy, processes)


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def _place(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
