"""One step of both released arms, written out again on the model's own logits, gives the weights of the loop."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from safebench import config
from safebench.algorithms.base import Measurement
from safebench.algorithms.safe_released import ReleasedSAFE
from safebench.models.generation import Rollout
from safebench.training.loop import Loop
from tests.algorithms.test_safe_released import PLAIN, released
from tests.support.tiny import PAD


def ask(loop: Loop, ids: Tensor, replies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the reply positions over the vocabulary, the last state's heads, and the states."""
    out = loop.world.policy.model(input_ids=ids, attention_mask=(ids != PAD).long(), output_hidden_states=True)
    last = out.hidden_states[-1][:, -1]
    logits: Tensor = out.logits[:, -replies - 1 : -1]
    return logits.log_softmax(-1), loop.critic.online(last), last


def chosen(log_p: Tensor, ids: Tensor) -> Tensor:
    tokens = ids[:, -log_p.shape[1] :]
    return log_p.gather(-1, tokens[..., None])[..., 0]


def by_hand(loop: Loop, rollout: Rollout, scores: Tensor, *, safe: bool) -> Iterator[dict[str, float]]:
    """Make the two updates of a batch as the release makes them; yield each one's terms."""
    width = int((rollout.ids != PAD).any(0).nonzero().max()) + 1
    ids = rollout.ids[:, :width]
    replies = width - (rollout.ids.shape[1] - rollout.mask.shape[1])
    mask = (ids[:, -replies:] != PAD).float()
    rewards = scores
    if safe:  # the first batch into a normaliser that holds 1e-4 rewards of mean 0 and variance 1
        n = len(scores)
        mean = float(scores.mean()) * n / (n + 1e-4)
        squares = 1e-4 + float(scores.var()) * n + float(scores.mean()) ** 2 * 1e-4 * n / (n + 1e-4)
        rewards = (scores - mean) / ((squares / (n + 1e-4)) ** 0.5 + 1e-8)

    def value(heads: Tensor) -> Tensor:
        return -0.3 * (-heads / 0.3).exp().mean(-1).log() if safe else heads[:, 0]

    with torch.no_grad():
        log_p, heads, _ = ask(loop, ids, replies)
        old, old_value = chosen(log_p, ids), value(heads)
        with loop.world.policy.as_reference():
            reference = chosen(ask(loop, ids, replies)[0], ids)
        gain = rewards - old_value
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    adapter = list(loop.world.policy.trainable().values())
    critic = list(loop.critic.online.parameters())
    optimizers = [torch.optim.AdamW(owned, lr=1e-2) for owned in (adapter, critic)]
    for _ in range(2):
        log_p, heads, _ = ask(loop, ids, replies)
        now = value(heads)
        ratio = (chosen(log_p, ids) - old).exp()
        worse = torch.minimum(ratio * gain[:, None], ratio.clamp(0.8, 1.2) * gain[:, None])
        terms = {"policy": -(worse * mask).sum() / mask.sum()}
        if safe:
            near = old_value + (now - old_value).clamp(-0.2, 0.2)
            both = huber_loss(now, rewards, delta=0.5) + huber_loss(near, rewards, delta=0.5)
            terms["value"] = 0.5 * 0.5 * both
            terms["entropy"] = 0.01 * (log_p.exp() * log_p).sum(-1).mean()
        else:
            terms["value"] = 0.5 * (now - rewards).square().mean()
            terms["kl"] = 0.05 * ((chosen(log_p, ids) - reference) * mask).sum() / mask.sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(adapter, 1.0)
        if safe:
            nn.utils.clip_grad_norm_(critic, 0.5)
        for optimizer in optimizers:
            optimizer.step()
        yield {name: float(term.detach()) for name, term in terms.items()}


def weights(loop: Loop) -> dict[str, Tensor]:
    found: dict[str, Any] = {**loop.world.policy.trainable(), **dict(loop.critic.online.named_parameters())}
    return {name: p.detach().clone() for name, p in found.items()}


@pytest.mark.parametrize("name", ["safe-official", "ppo-official"])
@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_step_is_the_releases_step(name: str, microbatch: int | None) -> None:
    update = {"microbatch": microbatch, "learning_rate": 1e-2}
    loop, twin = (released(name, update=update, rollout={"reply_tokens": 9}, **PLAIN) for _ in range(2))
    before = weights(loop)
    row = loop.step()[0]
    twin.step_number = 1
    rollout = twin._sample()
    first, second = by_hand(twin, rollout, twin._score(rollout), safe=name == "safe-official")
    for term, value in first.items():
        assert row[f"loss/{term}"] == pytest.approx((value + second[term]) / 2, rel=1e-4, abs=1e-6)
    ours, theirs = weights(loop), weights(twin)
    for key, was in before.items():
        moved, expected = ours[key] - was, theirs[key] - was
        assert float(expected.norm()) > 0
        assert float((moved - expected).norm()) <= 1e-3 * float(expected.norm()), key


def published_controller(batches: list[tuple[float, float, list[float]]]) -> Iterator[tuple[float, float, str]]:
    """Yield penalty, threshold and phase per update: equations 5 to 10 with the released constants, from zero."""
    short, smoothed, error, integral = 0.0, math.nan, 0.0, 0.0
    rewards: list[float] = []
    for reward, entropy, kls in batches:
        for kl in kls:
            short = 0.9 * short + 0.1 * kl
            rewards.append(reward)
            now, control = fmean(rewards[-50:]), 0.0
            before = fmean(rewards[-100:-50]) if len(rewards) >= 100 else now
            if len(rewards) < 50:
                phase, factor = "warmup", 1.5
            elif now > before + 0.01:
                phase, factor = "climbing", 1.2
            elif pstdev(rewards[-50:]) < 0.02 and now > 0.7:
                phase, factor = "converged", 1.0
            else:
                phase, factor = "plateau", 0.8
            if math.isnan(smoothed):
                smoothed = reward
            else:
                was, smoothed = smoothed, 0.95 * smoothed + 0.05 * reward
                error, last = smoothed - was - 0.001, error
                integral = max(-1.0, min(1.0, integral + error))
                control = 0.3 * error + 0.01 * integral + 0.05 * (error - last)
            tau = max(0.1, min(0.6, (0.3 + control) * factor))
            gate = max(0.5, 2.0 / (entropy + 0.1))
            yield (gate * 0.1 * (short - tau) ** 2 if short > tau else 0.0), tau, phase


def test_the_shipped_arms_controller_has_the_released_constants() -> None:
    draw = random.Random(0)
    means, near = [0.02 * i for i in range(60)] + [1.2] * 60 + [0.1] * 40, (0.4, 0.3)
    batches = [
        (mean + draw.gauss(0, 0.005), draw.uniform(0.1, 5), [draw.gauss(*near), draw.gauss(*near)]) for mean in means
    ]
    arm, phases = ReleasedSAFE(config.resolve("safe-official")), set()
    expected = published_controller(batches)
    for reward, entropy, kls in batches:
        assert arm.control(Measurement(math.nan, math.nan, math.nan, reward, entropy)) == {}
        for kl in kls:
            loss, columns = arm.control_update(kl)
            penalty, tau, phase = next(expected)
            assert loss["loss/penalty"] == pytest.approx(penalty, rel=1e-9, abs=1e-15)
            assert columns["controller/threshold"] == pytest.approx(tau, rel=1e-9)
            assert columns["controller/phase"] == phase
            phases.add(phase)
    assert phases == {"warmup", "climbing", "plateau", "converged"}
