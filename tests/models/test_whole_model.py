"""Policies of every kind: all weights trained, another adapter as the reference, mixed precision, no stop token."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from safebench.config.schema import Critic as CriticSettings
from safebench.config.schema import Model
from safebench.errors import Interrupted
from safebench.models.assemble import adapt
from safebench.models.critic import Critic
from safebench.models.generation import Rollout
from safebench.models.policy import Policy, frozen_copy
from safebench.models.prompts import Prompts
from safebench.models.rewards import FunctionReward
from safebench.scoring import talk
from safebench.training import run
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from safebench.training.measure import measure
from tests.support.runs import make_parts, rows, tiny_run
from tests.support.tiny import CPU, END, STOPS, share_of_a, tiny_policy, tiny_rollout, tiny_settings, tiny_world


def whole(**model: Any) -> Policy:
    """Return a tiny policy of which all weights are trained."""
    base = tiny_policy().model.unload()
    assert isinstance(base, Qwen2ForCausalLM)
    policy = adapt(base, tiny_policy().tokenizer, Model(lora=None, **model), 0, CPU)
    policy.stop_ids = STOPS
    return policy


def one_step(policy: Policy, **sections: Any) -> tuple[Loop, dict[str, Any]]:
    settings = tiny_settings(**sections)
    loop = Loop(settings, tiny_world(policy), Processes(settings.compute))
    row, _ = loop.step()
    return loop, dict(row)


@pytest.mark.parametrize("arm", ["ppo", "safe"])
def test_all_weights_are_trained_and_the_reference_stays(arm: str) -> None:
    policy = whole()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    _, row = one_step(policy, arm=arm, reward={"kl_coefficient": 0.1})
    assert row["kl/mean"] == 0.0, "an untrained policy is its reference"
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)
    assert isinstance(policy.reference, Qwen2ForCausalLM)
    for name, p in policy.reference.named_parameters():
        assert torch.equal(p, before[name]) and not p.requires_grad
    assert float(measure(policy, tiny_rollout(policy), 1.0).kl.max()) > 0


def test_the_kl_of_a_whole_model_is_that_of_both_models_own_logits() -> None:
    policy = whole()
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    rollout = tiny_rollout(policy)
    measured = measure(policy, rollout, 1.0)
    positions = (rollout.attention.cumsum(-1) - 1).clamp(min=0)
    kept = rollout.mask.shape[1]
    logs = []
    for model in (policy.model, policy.reference):
        with torch.no_grad():
            logits = model(input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=positions).logits
        logs.append(torch.log_softmax(logits[:, -kept - 1 : -1].double(), -1))
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    torch.testing.assert_close(measured.kl[rollout.mask].double(), expected[rollout.mask], rtol=2e-5, atol=2e-6)
    for found, log_p in ((measured.log_probs, logs[0]), (measured.reference_log_probs, logs[1])):
        chosen = log_p.gather(-1, rollout.tokens[..., None]).squeeze(-1)
        torch.testing.assert_close(found[rollout.mask].double(), chosen[rollout.mask], rtol=2e-6, atol=2e-6)


def test_another_adapter_can_be_the_reference() -> None:
    policy = tiny_policy(moved=0.3)
    model = policy.model
    assert isinstance(model, PeftModel)
    model.add_adapter("start", LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if ".start." in name:
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
            p.requires_grad_(False)
    trained = set(policy.trainable())
    rollout = tiny_rollout(policy)
    off = measure(policy, rollout, 1.0).reference_log_probs
    policy.reference = "start"
    measured = measure(policy, rollout, 1.0)
    assert set(policy.trainable()) == trained and all(".default." in name for name in trained)
    assert model.active_adapter == "default"
    assert not torch.equal(measured.reference_log_probs, off)
    other = copy.deepcopy(policy)
    assert isinstance(other.model, PeftModel)
    other.model.set_adapter("start")
    torch.testing.assert_close(measured.reference_log_probs, measure(other, rollout, 1.0).log_probs, rtol=0, atol=0)


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    exact, mixed = tiny_policy(moved=0.3), tiny_policy(moved=0.3)
    mixed.mixed_precision = True
    rollout = tiny_rollout(exact)
    found, expected = (measure(p, rollout, 1.0).log_probs[rollout.mask] for p in (mixed, exact))
    difference = (found - expected).abs()
    # bfloat16 keeps eight bits: logits of size about ten are off by some hundredths.
    assert 1e-4 < float(difference.max()) < 0.5
    loop, row = one_step(mixed)
    assert all(p.dtype == torch.float32 for p in mixed.trainable().values())
    assert row["grad/norm"] > 0 and loop.broken is None


def test_without_a_stop_token_every_reply_fills_its_length() -> None:
    policy = tiny_policy()
    policy.stop_ids = ()
    rollout = tiny_rollout(policy, tokens=9)
    assert bool(rollout.mask.all()) and not bool(rollout.ended.any())
    assert int((rollout.tokens == END).sum()) > 0, "the end token was drawn and passed over"


def test_prompts_that_came_as_ids_are_not_encoded_again() -> None:
    world = tiny_world(tiny_policy())
    ids = [[2 + i, 3 + i] for i in range(32)]
    given = type(world)(world.policy, Prompts(["?"] * 32, ["?"] * 8, ids, ids[:8]), world.reward, None)
    settings = tiny_settings()
    loop = Loop(settings, given, Processes(settings.compute))
    rollout = loop._sample()
    assert all(tuple(row[:2].tolist()) in {tuple(pair) for pair in ids} for row in rollout.ids)


class Lengths(FunctionReward):
    """Scores a reply by its number of tokens, end token included."""

    def score_rollout(self, rollout: Rollout) -> torch.Tensor:
        return rollout.mask.sum(-1).float()


def test_a_reward_may_read_ids() -> None:
    world = tiny_world(tiny_policy())
    settings = tiny_settings()
    loop = Loop(
        settings, type(world)(world.policy, world.prompts, Lengths("lengths", share_of_a), None),
        Processes(settings.compute),
    )
    row, _ = loop.step()
    assert row["reward/mean"] == row["reply/length"]


def test_a_given_value_model_is_the_critic() -> None:
    policy = tiny_policy()
    body = frozen_copy(policy.model.unload()).get_decoder().requires_grad_(True)
    head = nn.Linear(16, 1, bias=False)
    critic = Critic(CriticSettings(body="separate"), policy, 0, body, head)
    assert [p.shape for p in critic.online.parameters()] == [torch.Size([1, 16])]
    assert critic.online.heads[0] is head, "training reaches the given layer"
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(critic.online(states), head(states), rtol=0, atol=0)
    assert critic.body is body


def test_a_whole_models_run_resumes_and_its_model_loads_with_plain_transformers(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    settings = tiny_run(parts, "ppo", model__lora="null")
    outcome = run.execute(settings, tmp_path / "first")
    assert outcome.status == "finished"

    def stop(row: Mapping[str, Any], events: list[str]) -> None:
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run.execute(settings, tmp_path / "second", progress=stop)
    written = talk.export(outcome.folder, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(written)
    kept = AutoModelForCausalLM.from_pretrained(outcome.folder / "model")
    ids = torch.arange(2, 12)[None]
    torch.testing.assert_close(plain(ids).logits, kept(ids).logits, rtol=0, atol=0)
    start = AutoModelForCausalLM.from_pretrained(parts / "model")
    assert not torch.equal(plain(ids).logits, start(ids).logits)
    again = run.execute(settings, tmp_path / "second")
    assert rows(again.folder).equals(rows(outcome.folder))
