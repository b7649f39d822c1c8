"""Update policy and critic in epochs of mini-batches over one batch: gradients, clipping, optimizer steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from safebench import registry, user_code
from safebench.algorithms.base import Algorithm, Experience, ForwardOutput, Loss, MiniBatch
from safebench.config import schema as s
from safebench.models import seeding
from safebench.models.critic import Critic, reply_states
from safebench.models.policy import Policy
from safebench.rl.kl import token_statistics
from safebench.training.distributed import Processes
from safebench.training.kl_line_search import stepper
from safebench.training.measure import scatter_to_mask

Optimizers = tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None]
"""An optimizer, and a schedule that advances once per batch; None selects what the settings say."""


@dataclass
class UpdateMetrics:
    """Sums over a step's updates, and which number is not finite, if any."""

    updates: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    preview: dict[str, float] = field(default_factory=dict)
    signal: dict[str, float | str] = field(default_factory=dict)
    """Columns of a controller that advances with every update; those of the last update."""
    ratio_max: float = 0.0
    learning_rate: float = 0.0
    broken: str | None = None

    def add(self, **values: float) -> None:
        """Count one update's values."""
        self.updates += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def means(self) -> dict[str, float]:
        """Return the mean of each value over the updates."""
        return {key: value / max(1, self.updates) for key, value in self.sums.items()}


@dataclass
class _MiniBatchSums:
    """Sums over this process's rows of a mini-batch."""

    terms: dict[str, float]
    norms: dict[str, list[Tensor]]
    """Each term's own gradient by parameter; empty unless requested."""
    tokens: float
    """Number of reply tokens of all processes."""
    positions: float
    """Number of trained values of all processes."""
    per_token: dict[str, float]
    per_value: dict[str, float]
    kl: float = 0.0
    """Sum of the current policy's sampled KL to the reference (k1)."""
    largest: float = 0.0
    """Largest ratio."""

    def add(self, found: Loss, past: MiniBatch, present: ForwardOutput) -> None:
        """Add a micro-batch to the sums."""
        for sums, values in ((self.per_token, found.per_token), (self.per_value, found.per_value)):
            for key, value in values.items():
                sums[key] += value
        for name, term in found.terms.items():
            self.terms[name] += float(term.detach())
        now = present.log_probs.detach()[past.mask]
        self.kl += float((now - past.reference_log_probs[past.mask]).sum())
        if now.numel():
            self.largest = _larger(self.largest, float((now - past.log_probs[past.mask]).exp().max()))


class Updater:
    """Updates policy and critic with one optimizer of two parameter groups, each with its own clipping."""

    def __init__(
        self,
        settings: s.Settings,
        policy: Policy,
        critic: Critic,
        algorithm: Algorithm,
        processes: Processes,
        optimizers: Optimizers = (None, None),
    ) -> None:
        self.settings, self.policy, self.critic = settings, policy, critic
        self.algorithm, self.processes = algorithm, processes
        self.policy_parameters = list(policy.trainable().values())
        self.critic_parameters = list(critic.parameters())
        update = settings.update
        self.rates = (update.learning_rate, update.critic_learning_rate or update.learning_rate)
        self.optimizer, self.schedule = optimizers[0] or self._own_optimizer(), optimizers[1]
        self.stepper = stepper(settings, policy, processes)

    def _own_optimizer(self) -> torch.optim.Optimizer:
        update = self.settings.update
        make = registry.find("optimizers", update.optimizer).load()
        with user_code.making(f"the optimizer {update.optimizer}", make, "it(parameter_groups, weight_decay=number)"):
            made: torch.optim.Optimizer = make(
                [
                    {"params": self.policy_parameters, "lr": self.rates[0]},
                    {"params": self.critic_parameters, "lr": self.rates[1]},
                ],
                weight_decay=update.weight_decay,
            )
        return made

    def state(self) -> dict[str, Any]:
        """Return the optimizer's state, and the schedule's if one was passed."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state if self.schedule is None else {**state, "schedule": self.schedule.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state`` returned."""
        self.optimizer.load_state_dict({key: value for key, value in state.items() if key != "schedule"})
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])

    def takes_whole_batch(self) -> bool:
        """Return whether the first update is one pass with the same rows and states as the batch's measurement."""
        update, rows = self.settings.update, len(self.processes.rows(self.settings.rollout.batch))
        one = update.minibatches == 1 and (update.microbatch is None or update.microbatch >= rows)
        return one and self.algorithm.reads == "token" and not self.policy.drops

    def run(self, step: int, experience: Experience, *, gradient_norms: bool) -> UpdateMetrics:
        """Run all epochs of one batch; stop at the first number that is not finite, before it changes the weights."""
        self._set_rates(step)
        self.step = step
        metrics = UpdateMetrics(learning_rate=float(self.optimizer.param_groups[0]["lr"]))
        self.stepper.begin(experience)
        for rows in self._minibatches(step):
            with self.policy.training():
                norms = gradient_norms and metrics.updates == 0
                sums = self._minibatch(experience, rows, metrics.updates, gradient_norms=norms)
            self._finish(metrics, sums)
            if metrics.broken:
                break
        metrics.preview = self.stepper.columns()
        if self.schedule is not None and metrics.broken is None:
            self.schedule.step()
        return metrics

    def _set_rates(self, step: int) -> None:
        if self.schedule is not None:
            return
        update = self.settings.update
        factor = 1.0 if update.schedule == "constant" else 1 - (step - 1) / update.steps
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _minibatches(self, step: int) -> Iterator[list[int]]:
        """Yield this process's rows of each mini-batch; the order does not depend on the number of processes."""
        batch, parts = self.settings.rollout.batch, self.settings.update.minibatches
        mine = self.processes.rows(batch)
        for epoch in range(self.settings.update.epochs):
            order = list(range(batch))
            if parts > 1:
                order = seeding.permutation(batch, "minibatches", self.settings.seed, step, epoch)
            size = batch // parts
            for start in range(0, batch, size):
                yield [row - mine.start for row in order[start : start + size] if row in mine]

    def _minibatch(
        self, experience: Experience, rows: list[int], update: int, *, gradient_norms: bool
    ) -> _MiniBatchSums:
        mask, positions = experience.rollout.mask[rows], experience.positions[rows]
        sizes = torch.stack([mask.sum(), positions.sum(), torch.full_like(mask.sum(), mask.numel())])
        counts = self.processes.add(sizes.double()).clamp(min=1).tolist()
        self.optimizer.zero_grad(set_to_none=True)
        owners = [*self.policy_parameters, *self.critic_parameters]
        terms = dict.fromkeys(self.algorithm.names, 0.0)
        norms = {name: [torch.zeros_like(p) for p in owners] for name in self.algorithm.names} if gradient_norms else {}
        per_token = dict.fromkeys(self.algorithm.token_columns, 0.0)
        per_value = dict.fromkeys(self.algorithm.value_columns, 0.0)
        sums = _MiniBatchSums(terms, norms, counts[0], counts[1], per_token, per_value)
        for group in experience.rollout.groups(self.settings.update.microbatch, rows):
            past, present = self._forward(experience, group, counts, update)
            found = self.algorithm.loss(past, present)
            if gradient_norms:
                _add_gradients(norms, found.terms, owners)
            sum(found.terms.values()).backward()  # type: ignore[union-attr]
            sums.add(found, past, present)
        return sums

    def _forward(
        self, experience: Experience, rows: list[int], counts: list[float], update: int
    ) -> tuple[MiniBatch, ForwardOutput]:
        measured, cut = experience.measured, experience.rollout.cut(rows)
        mask, replies = cut.mask, cut.mask.shape[1]
        first = self.processes.rows(self.settings.rollout.batch).start + rows[0]
        if update == 0 and measured.graph is not None:
            hidden = measured.graph  # the weights have not changed since the measurement
        else:
            where = (self.settings.seed, self.step, 1 + update, first)
            hidden = self.policy.dropped_states(cut.ids, cut.attention, *where)
        states = reply_states(hidden, replies)
        kept = torch.ones_like(mask) if self.algorithm.over_padding else mask
        found = token_statistics(
            states[kept],
            cut.tokens[kept],
            self.policy.output,
            reference=measured.reference_states[rows, :replies][kept] if self.algorithm.needs_kl else None,
            reference_output=self.policy.reference_output if self.algorithm.needs_kl else None,
            with_entropy=self.algorithm.needs_entropy,
            temperature=self.settings.rollout.temperature,
        )
        present = ForwardOutput(
            torch.where(mask, scatter_to_mask(found.log_probs, kept), 0.0),
            None if found.entropy is None else scatter_to_mask(found.entropy, kept),
            None if found.kl is None else torch.where(mask, scatter_to_mask(found.kl, kept), 0.0),
            self.critic.online(self.critic.features(self.critic.read(hidden, replies), cut.ids, cut.attention)),
        )
        past = MiniBatch(
            mask,
            measured.log_probs[rows, :replies],
            measured.reference_log_probs[rows, :replies],
            experience.advantages[rows, :replies],
            experience.returns[rows, :replies],
            experience.heads[rows, :replies],
            experience.positions[rows, :replies],
            *counts,
        )
        return past, present

    def _finish(self, metrics: UpdateMetrics, sums: _MiniBatchSums) -> None:
        """Sum over processes, clip the gradients, check all numbers, and make the step."""
        self.processes.add_gradients([*self.policy_parameters, *self.critic_parameters])
        named = (*sums.terms, *sums.per_token, *sums.per_value)
        local = [*sums.terms.values(), *sums.per_token.values(), *sums.per_value.values(), sums.kl]
        added = self.processes.add(torch.tensor(local, dtype=torch.float64, device=self.policy.device)).tolist()
        totals = dict(zip(named, added, strict=False))
        values = {f"loss/{name}": totals[name] for name in sums.terms}
        plain, metrics.signal = self.algorithm.control_update(added[-1] / sums.tokens)
        values |= plain
        largest = functools.reduce(_larger, self.processes.gather([sums.largest]))
        norm = _clip(self.policy_parameters, self.settings.update.max_grad_norm)
        critic_norm = _clip(self.critic_parameters, self.settings.update.critic_max_grad_norm)
        metrics.ratio_max = _larger(metrics.ratio_max, largest)
        metrics.add(
            **values,
            **{
                "loss/total": sum(values.values()),
                "grad/norm": norm,
                "grad/critic_norm": critic_norm,
                **{key: totals[key] / sums.tokens for key in sums.per_token},
                **{key: totals[key] / sums.positions for key in sums.per_value},
            },
        )
        for name, parts in sums.norms.items():
            flat = self.processes.add(torch.cat([part.flatten().float() for part in parts]))
            metrics.gradients[f"grad/{name}"] = float(flat.norm())
        checked = {**values, "gradient": norm, "critic gradient": critic_norm, "ratio": largest}
        bad = [name for name, value in checked.items() if not math.isfinite(value)]
        if bad:
            metrics.broken = f"{bad[0]} is {checked[bad[0]]}"
        else:
            self.stepper.step(self.optimizer)
            self.critic.advance_target("update")


def _larger(a: float, b: float) -> float:
    """Return the larger number, or NaN if either is NaN."""
    return a if a != a or a >= b else b


def _clip(parameters: list[nn.Parameter], limit: float | None) -> float:
    """Clip the gradient's norm to ``limit`` and return the norm before clipping."""
    with_gradient = [p for p in parameters if p.grad is not None]
    return float(nn.utils.clip_grad_norm_(with_gradient, math.inf if limit is None else limit))


def _add_gradients(norms: dict[str, list[Tensor]], terms: dict[str, Tensor], parameters: list[nn.Parameter]) -> None:
    """Add each term's own gradient to the sums of earlier micro-batches; a term without a gradient adds nothing."""
    for name, term in terms.items():
        if term.requires_grad:
            found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(norms[name], found, strict=True):
                if gradient is not None:
                    total += gradient
