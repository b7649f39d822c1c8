"""What a run will need, by arithmetic: against hand-worked numbers, peft's own count and the order of things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safebench import config, registry
from safebench.config.schema import Settings
from safebench.resources import GIB, MIB, adapter_parameters, critic_parameters, dimensions, estimate, readable
from tests.support.hub import name_main


def settings(*overrides: str, experiment: str = "ppo") -> Settings:
    return config.resolve(experiment, overrides=overrides)


def test_updates_and_tokens() -> None:
    sizes = ("update.steps=7", "update.epochs=3", "update.minibatches=4", "rollout.batch=8", "rollout.reply_tokens=5")
    needs = estimate(settings(*sizes))
    assert needs.updates == 7 * 3 * 4
    assert needs.tokens == 7 * 8 * 5


def test_adapter_by_hand() -> None:
    # Embedded: width 256, 8 heads of 32, 2 key heads, inner 704, 4 layers.
    q, k, o, gate, down = 256 + 256, 256 + 64, 256 + 256, 256 + 704, 704 + 256
    by_hand = 4 * 8 * (q + 2 * k + o + 2 * gate + down)
    assert adapter_parameters(settings(), registry.EMBEDDED) == by_hand
    only = settings("model.lora.targets=[q_proj]", "model.lora.rank=2")
    assert adapter_parameters(only, registry.EMBEDDED) == 4 * 2 * q


def test_paper_adapter_is_what_peft_makes() -> None:
    # Qwen2.5-3B, rank 128 on all seven: 36 layers of 128 (4096 + 2 (2048 + 256) + 4096 + 3 (2048 + 11008)).
    paper = config.resolve("ppo", preset="paper")
    assert adapter_parameters(paper, registry.QWEN2_5_3B) == 36 * 128 * (8192 + 2 * 2304 + 3 * 13056)


def test_adapter_and_critic_counts_are_those_of_the_real_parts() -> None:
    pytest.importorskip("torch")
    from safebench.models.critic import Critic
    from tests.support.tiny import tiny_policy

    policy = tiny_policy()
    architecture = policy.base.config.to_dict()
    small = settings("model.lora.rank=4", experiment="safe")
    assert adapter_parameters(small, architecture) == sum(p.numel() for p in policy.trainable().values())
    for changes in (
        [],
        ["critic.heads=single"],
        ["critic.head=linear", "critic.layer_norm=false"],
        ["critic.body=separate"],
    ):
        chosen = settings(*changes, experiment="safe")
        made = sum(p.numel() for p in Critic(chosen.critic, policy, 0).parameters())
        assert critic_parameters(chosen, architecture) == made, changes


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (["model.dtype=bfloat16"], ["model.dtype=float32"]),
        (["update.microbatch=32", "model.gradient_checkpointing=true"], ["update.microbatch=32"]),
        (["update.microbatch=2"], ["update.microbatch=32"]),
        (["update.microbatch=null", "update.minibatches=4"], ["update.microbatch=null"]),
        ([], ["rollout.reply_tokens=240"]),
        ([], ["model.lora.rank=64"]),
        ([], ["critic.body=separate"]),
        (["reward.name=module:function"], ["reward.name=armorm"]),
    ],
)
def test_what_costs_memory(less: list[str], more: list[str]) -> None:
    model = "model.name=qwen2.5-0.5b"
    first, second = (estimate(settings(model, *changes)).total_memory for changes in (less, more))
    assert first is not None
    assert second is not None
    assert first < second


def test_the_weights_of_a_3b_policy() -> None:
    half = estimate(settings("model.name=qwen2.5-3b", "model.dtype=bfloat16"))
    assert half.memory["policy"] == 2 * 3_085_938_688
    assert half.parameters == 3_085_938_688
    assert estimate(settings("model.name=qwen2.5-3b")).memory["policy"] == 4 * 3_085_938_688


def test_the_paper_set_up_needs_a_large_gpu_and_the_issue_s_cpu_run_fits() -> None:
    paper = estimate(config.resolve("safe", preset="paper"), "cuda").total_memory
    assert paper is not None
    assert 24 * GIB < paper < 80 * GIB
    random = ["model.name=qwen2.5-3b", "model.random_weights=true", "model.dtype=bfloat16", "model.lora.rank=128"]
    small = ["rollout.batch=4", "model.gradient_checkpointing=true", "reward.name=m:f", "reward.judge=null"]
    needs = estimate(settings(*random, *small))
    assert needs.total_memory is not None
    assert needs.total_memory < 24 * GIB
    assert "downloads" not in needs.disk, "random weights need none"


def test_disk_by_hand() -> None:
    chosen = settings("update.steps=100", "recording.trackers=[wandb, tensorboard]", "recording.keep_checkpoints=2")
    needs = estimate(chosen)
    assert needs.trainable is not None
    assert needs.disk["checkpoints"] == 3 * 12 * needs.trainable
    assert needs.disk["trackers"] == 2 * 100 * 4000
    assert needs.total_disk == sum(needs.disk.values())


def test_downloads_are_counted_apart_and_only_where_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    needs = estimate(settings("model.name=qwen2.5-0.5b"))
    assert needs.disk["downloads"] == 2 * 494_032_768
    assert needs.total_disk < needs.disk["downloads"]
    snapshot = tmp_path / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    name_main(snapshot)
    assert "downloads" not in estimate(settings("model.name=qwen2.5-0.5b")).disk


def test_a_model_whose_dimensions_are_not_known_is_said_to_be() -> None:
    needs = estimate(settings("model.name=some/model"))
    assert needs.total_memory is None
    assert any("some/model" in note for note in needs.notes)


def test_dimensions_of_a_local_directory(tmp_path: Path) -> None:
    assert dimensions(registry.find("models", str(tmp_path))) is None
    (tmp_path / "config.json").write_text(json.dumps(registry.EMBEDDED))
    assert dimensions(registry.find("models", str(tmp_path))) == registry.EMBEDDED
    assert estimate(settings(f"model.name={tmp_path}")).parameters == registry.parameters(registry.EMBEDDED)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8}))
    assert dimensions(registry.find("models", str(tmp_path))) is None, "another family: not known rather than wrong"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MiB"), (1.5 * MIB, "1.5 MiB"), (700 * MIB, "700 MiB"), (3.44 * GIB, "3.4 GiB")]
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert readable(size) == text
