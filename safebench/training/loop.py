"""Run the training loop of all algorithms but wrapped trainers: sample, score, measure, control, advantages, update.

Differences from TRL 1.12.0's PPOTrainer:
1. the critic reads the policy's own hidden states (a separate value model is a setting);
2. logits are computed for reply tokens only, and vocabulary-wide quantities in chunks;
3. KL and entropy are exact over the vocabulary, and every mean excludes padding;
4. sampling noise depends on seed, step and row alone; nothing draws from a global generator;
5. gradients are clipped, for policy and critic separately;
6. the whole state is explicit, so a resumed run continues as if it had not stopped.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from safebench import registry, user_code
from safebench.algorithms.base import Algorithm, Experience, Measured, Measurement, ScoredBatch
from safebench.config.schema import Settings
from safebench.metrics import MEASURED
from safebench.models import seeding
from safebench.models.assemble import World
from safebench.models.critic import Critic
from safebench.models.generation import Rollout, encode, sample
from safebench.models.prompts import conversation_of
from safebench.models.rewards import score
from safebench.recording.jsonl import Sample
from safebench.rl.advantages import Moments, masked_mean
from safebench.rl.value_heads import explained_variance
from safebench.training.distributed import Processes
from safebench.training.evaluate import Evaluation, distinct_2, distinct_share, evaluate
from safebench.training.measure import measure
from safebench.training.update import Optimizers, UpdateMetrics, Updater


class Clock:
    """Adds up seconds by stage; on CUDA it synchronises the device before reading the time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as ``time/name``."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[f"time/{name}"] = self.seconds.get(f"time/{name}", 0.0) + self._now() - start

    def take(self) -> dict[str, float]:
        """Return the seconds so far and reset them."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """Return the peak memory so far in MiB: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


Row = dict[str, float | str | None]
Report = Callable[[Row, list[Sample]], bool]
"""Takes a step's row and samples; returns whether to continue."""


class Learner(Protocol):
    """One run's learner: ``Loop``, or a wrapped trainer of another library."""

    world: World
    clock: Clock
    sigma0: float
    """Standard deviation of the initial policy's held-out rewards; set before the first step."""
    step_number: int
    broken: str | None
    """Which number is not finite; None while all numbers are finite."""

    @property
    def resumable(self) -> bool:
        """Whether a run can be resumed from ``state``; if not, an interrupted run starts again from the beginning."""
        ...

    @property
    def paired(self) -> bool:
        """Whether its randomness depends on seed, step and row alone, so that runs with the same seed are pairs."""
        ...

    def evaluate(self) -> Evaluation:
        """Evaluate the current policy on the held-out prompts."""
        ...

    def learn(self, report: Report) -> None:
        """Make steps until the last one, or until ``report`` returns false."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state`` returned."""
        ...


@dataclass(frozen=True)
class BatchStatistics:
    """Statistics of a batch over all processes: the columns of its row, and the input of a controller."""

    columns: Mapping[str, float]
    entropy_by_reply: float
    """Mean over the replies of each one's mean entropy, nats per token."""

    def measurement(self, sigma0: float) -> Measurement:
        """Return a controller's input: KL and entropy in nats per token, the mean reward in units of sigma_0."""
        kl, entropy, reward = (self.columns[key] for key in ("kl/mean", "entropy/mean", "reward/mean"))
        return Measurement(kl, entropy, reward / sigma0, reward, self.entropy_by_reply)


def describe(rollout: Rollout, measured: Measured, rewards: Tensor, processes: Processes) -> BatchStatistics:
    """Return a batch's statistics; ``rewards`` [B] are this process's, ``measured`` is the result of ``measure``."""
    add, mask = processes.add, rollout.mask
    stops = rollout.ended.tolist()
    lengths = mask.sum(-1).tolist()
    ids = [row[: n - int(e)].tolist() for row, n, e in zip(rollout.tokens, lengths, stops, strict=True)]
    gathered = processes.gather(list(zip(rollout.replies, ids, lengths, stops, rewards.tolist(), strict=True)))
    replies, bigram_ids, lengths, stops, all_rewards = (list(column) for column in zip(*gathered, strict=True))
    scores = torch.tensor(all_rewards, dtype=torch.float64)
    log_ratio = measured.log_probs - measured.reference_log_probs
    by_reply = torch.where(mask, measured.entropy, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    columns = {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std()) if len(scores) > 1 else 0.0,
        "kl/mean": float(masked_mean(measured.kl, mask, add)),
        "kl/max": max(processes.gather([float(measured.kl.max())])),
        "kl/sampled": float(add(log_ratio.sum())) / len(replies),
        "entropy/mean": float(masked_mean(measured.entropy, mask, add)),
        "reply/surprisal": -float(add(measured.log_probs.sum())) / len(replies),
        "reply/length": sum(lengths) / len(replies),
        "reply/ended": sum(stops) / len(replies),
        "reply/distinct": distinct_share(replies),
        "reply/distinct_2": distinct_2(bigram_ids),
        "prompt/truncated": sum(processes.gather([rollout.truncated])),
    }
    return BatchStatistics(columns, float(add(by_reply.sum())) / len(replies))


def perturb_rewards(settings: Settings, rewards: Tensor, *, step: int, rows: Iterable[int], sigma0: float) -> Tensor:
    """Return the rewards [B] of a step (from 1), rescaled and with noise; ``rows`` are their indices in the batch.

    The noise has a standard deviation of ``reward.noise`` sigma_0 and depends on seed, step and row alone.
    """
    reward = settings.reward
    if reward.rescale_at is not None and step > reward.rescale_at * settings.update.steps:
        rewards = rewards * reward.rescale_by
    if reward.noise:
        draws = seeding.normals("reward", settings.seed, step, rows).to(rewards.device)
        rewards = rewards + reward.noise * sigma0 * draws
    return rewards


class Loop:
    """One run: the world, the algorithm, the critic, their updater, and the number of steps so far.

    A critic, an optimizer and a schedule may be passed; otherwise they are made from the settings.
    """

    resumable = True
    paired = True

    def __init__(
        self,
        settings: Settings,
        world: World,
        processes: Processes,
        critic: Critic | None = None,
        optimizers: Optimizers = (None, None),
    ) -> None:
        self.settings, self.world, self.processes = settings, world, processes
        make = registry.find("algorithms", settings.algorithm).load()
        with user_code.making(f"the algorithm {settings.algorithm}", make, "it(settings)"):
            self.algorithm: Algorithm = make(settings)
        self.critic = critic or Critic(settings.critic, world.policy, settings.seed, reads=self.algorithm.reads)
        self.updater = Updater(settings, world.policy, self.critic, self.algorithm, processes, optimizers)
        self.moments = Moments()
        self.clock = Clock(world.policy.device)
        self.sigma0 = 1.0
        self.step_number, self.episodes, self.tokens = 0, 0, 0
        self.broken: str | None = None

    def evaluate(self) -> Evaluation:
        """Evaluate the current policy on the held-out prompts."""
        with self.clock.stage("evaluate"):
            return evaluate(self.settings, self.world, self.processes)

    def learn(self, report: Report) -> None:
        """Make steps until the last one, or until ``report`` returns false."""
        while self.step_number < self.settings.update.steps and report(*self.step()):
            pass

    def step(self) -> tuple[Row, list[Sample]]:
        """Make one step and return its row (the recorder adds the crash columns) and its samples.

        A number that is not finite ends the updates, sets ``broken`` and is kept in the row.
        """
        self.step_number += 1
        with self.clock.stage("step"):
            rollout = self._sample()
            rewards = self._score(rollout)
            with self.clock.stage("measure"):
                measured = self._measure(rollout)
                statistics = describe(rollout, measured, rewards, self.processes)
                signal = self.algorithm.control(statistics.measurement(self.sigma0))
                experience = self._advantages(rollout, measured, rewards)
            with self.clock.stage("update"):
                metrics = self.updater.run(self.step_number, experience, gradient_norms=self._norms_are_due())
                if metrics.broken is None:
                    self.critic.advance_target()
        self.broken = metrics.broken
        row: Row = self._counts(rollout) | dict(statistics.columns)
        row |= signal | metrics.signal | self._learned(experience, metrics) | self._costs(statistics)
        return {key: row.get(key) for key in MEASURED}, self._samples(rollout, rewards)

    def _sample(self) -> Rollout:
        with self.clock.stage("rollout"):
            settings, policy = self.settings, self.world.policy
            rows = self.processes.rows(settings.rollout.batch)
            train = self.world.prompts.train
            indices = seeding.batch_indices(settings.seed, self.step_number, settings.rollout.batch, len(train))
            texts = [train[indices[row]] for row in rows]
            encoded = encode(
                texts,
                [self.world.prompts.ids("train", indices[row], policy.tokenizer) for row in rows],
                settings.prompts.max_tokens,
                int(policy.tokenizer.pad_token_id),
                policy.device,
            )
            draws = seeding.uniforms("rollout", settings.seed, self.step_number, rows, settings.rollout.reply_tokens)
            rollout = sample(policy, encoded, draws, settings.rollout.temperature, settings.rollout.chunk)
            return replace(rollout, replicate=settings.compute.replicate)

    def _score(self, rollout: Rollout) -> Tensor:
        with self.clock.stage("reward"):
            return score(self.world.reward, rollout).to(self.world.policy.device)

    def _measure(self, rollout: Rollout) -> Measured:
        keep_graph = self.updater.takes_whole_batch()
        temperature, chunk = self.settings.rollout.temperature, self.settings.update.microbatch
        return measure(self.world.policy, rollout, temperature, chunk, keep_graph=keep_graph)

    def _advantages(self, rollout: Rollout, measured: Measured, rewards: Tensor) -> Experience:
        rows = self.processes.rows(self.settings.rollout.batch)
        scores = self._shaped(rollout, rewards, rows)
        draws = (self.settings.seed, self.step_number, rows.start)
        policy, add = self.world.policy, self.processes.add
        return self.algorithm.advantages(
            ScoredBatch(policy, self.critic, rollout, measured, scores, draws, add)
        )

    def _shaped(self, rollout: Rollout, rewards: Tensor, rows: range) -> Tensor:
        """Return the rewards used in training: perturbed, less the penalty for a missing end token, normalised."""
        reward = self.settings.reward
        scores = perturb_rewards(self.settings, rewards, step=self.step_number, rows=rows, sigma0=self.sigma0)
        scores = scores - reward.missing_eos_penalty * (~rollout.ended).to(scores.dtype)
        if reward.normalise:
            self.moments = self.moments.merge(torch.tensor(self.processes.gather(scores.tolist())))
            scores = self.moments.normalise(scores)
        return scores

    def _norms_are_due(self) -> bool:
        every = self.settings.recording.gradient_norms_every
        return every is not None and (self.step_number - 1) % every == 0

    def _counts(self, rollout: Rollout) -> Row:
        """Add the batch to the counters and return them, over all processes."""
        sampled = self.processes.add(rollout.mask.sum())
        self.episodes += self.settings.rollout.batch
        self.tokens += int(sampled)
        return {"step": self.step_number, "episodes": self.episodes, "tokens": self.tokens}

    def _learned(self, experience: Experience, metrics: UpdateMetrics) -> Row:
        """Return the columns of critic and updates."""
        add, positions = self.processes.add, experience.positions
        pairs = self.processes.gather(
            list(zip(experience.values[positions].tolist(), experience.returns[positions].tolist(), strict=True))
        )
        values, returns = torch.tensor(pairs, dtype=torch.float64).T
        replies = self.settings.rollout.batch
        return {
            "reward/shaped": float(add(torch.where(positions, experience.shaped, 0.0).sum())) / replies,
            "critic/explained_variance": explained_variance(values, returns, torch.ones_like(values, dtype=torch.bool)),
            "critic/value": float(values.mean()),
            "critic/return": float(returns.mean()),
            "update/ratio_max": metrics.ratio_max,
            "update/learning_rate": metrics.learning_rate,
            **metrics.means(),
            **metrics.gradients,
            **metrics.preview,
        }

    def _costs(self, statistics: BatchStatistics) -> Row:
        seconds = self.clock.take()
        sampled = statistics.columns["reply/length"] * self.settings.rollout.batch
        return {
            **seconds,
            "speed/tokens_per_second": sampled / seconds["time/step"],
            "memory/peak": peak_memory(self.world.policy.device),
        }

    def _samples(self, rollout: Rollout, rewards: Tensor) -> list[Sample]:
        first = list(zip(rollout.prompts, rollout.replies, rewards.tolist(), strict=True))
        keep = self.processes.gather(first)[: self.settings.recording.samples]
        return [
            Sample(row, prompt, reply, reward, messages=conversation_of(prompt))
            for row, (prompt, reply, reward) in enumerate(keep)
        ]

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as tensors and plain containers.

        Generators are derived from seed, step and row (``models/seeding.py``), so the step number is
        the only state that they and the order of the data need.
        """
        return {
            "step": self.step_number,
            "episodes": self.episodes,
            "tokens": self.tokens,
            "sigma0": self.sigma0,
            "adapter": {name: p.detach().cpu().clone() for name, p in self.world.policy.trainable().items()},
            "critic": self.critic.state(),
            "optimizer": self.updater.state(),
            "algorithm": self.algorithm.dump(),
            "moments": asdict(self.moments),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state`` returned."""
        self.step_number, self.episodes, self.tokens = state["step"], state["episodes"], state["tokens"]
        self.sigma0 = state["sigma0"]
        parameters = self.world.policy.trainable()
        with torch.no_grad():
            for name, value in state["adapter"].items():
                parameters[name].copy_(value)
        self.critic.restore(state["critic"])
        self.updater.restore(state["optimizer"])
        controller = state["algorithm"] if "algorithm" in state else state["arm"]  # the key's former name
        if controller:
            self.algorithm.restore(controller)
        self.moments = Moments(**state["moments"])
