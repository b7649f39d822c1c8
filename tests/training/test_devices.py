"""Runs on a pretended device: no tensor, index or generator lies where it must not, and the figures are the CPU's.

``pretend_device.py`` says what is checked, and what only a real GPU shows (``test_gpu.py``). Attention takes another of
torch's kernels there, so figures agree to rounding: 1e-4 after two updates in float32 is the stated tolerance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from safebench.config.schema import Settings
from safebench.models import adapters, seeding
from safebench.models.assemble import assemble
from safebench.models.libraries import quiet_libraries
from safebench.models.rewards import ModelReward
from safebench.recording import checkpoints
from safebench.rl import kl
from safebench.rl.kl import OutputLayer
from safebench.scoring.best_of_n import sample_best_of_n
from safebench.training import distributed, run
from safebench.training.distributed import Processes
from safebench.training.loop import Loop
from tests.support.drop_in import adapted, classifier, entries, trainer
from tests.support.pretend_device import Pretended, check_rules, pretended_device
from tests.support.runs import make_parts, rows, tiny_run
from tests.support.tiny import CPU, narrow, tiny_tokenizer

TOLERANCE = {"rel": 1e-4, "abs": 4e-6}
"""Sums come in another order. A log-probability is about 8 nats here, whose last digit in single precision is 1e-6;
sampled KL is a mean of differences of two, near zero."""
ARMS = ("ppo", "safe", "safe-predictive", "safe-official")
SHORT = {
    "rollout__batch": 4,
    "rollout__reply_tokens": 4,
    "update__steps": 2,
    "update__epochs": 1,
    "evaluation__every": 2,
    "evaluation__prompts": 4,
    "recording__checkpoint_every": 1,
}
MORE: dict[str, dict[str, Any]] = {
    "ppo": {"update__minibatches": 2, "reward__noise": 0.3, "critic__body": "separate"},
    "safe": {"update__microbatch": 3, "recording__gradient_norms_every": 1, "model__lora__dropout": 0.05},
    "safe-predictive": {"update__preview__ceiling": 1e-6},
    "safe-official": {"rollout__chunk": 3},
}
"""What takes each arm through more of the code."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@contextlib.contextmanager
def on_the_device() -> Iterator[torch.device]:
    """Within this context every run goes to the pretended device."""
    with pytest.MonkeyPatch.context() as patch, pretended_device() as made:
        patch.setattr(distributed, "_device", lambda name: made)
        yield made


@pytest.fixture
def device() -> Iterator[torch.device]:
    with on_the_device() as made:
        yield made


def short(parts: Path, arm: str, **values: Any) -> Settings:
    return tiny_run(parts, arm, **{**SHORT, **MORE.get(arm, {}), **values})


def alike(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=TOLERANCE["rel"], atol=TOLERANCE["abs"])


def loop_of(settings: Settings) -> Loop:
    made = Processes(settings.compute)
    with quiet_libraries():
        return Loop(settings, assemble(settings, made.device), made)


def near(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, str) else pytest.approx(v, **TOLERANCE, nan_ok=True) for k, v in row.items()}


def steady(row: dict[str, Any]) -> dict[str, Any]:
    """A row's figures, without what no two runs share."""
    environment = ("time/", "speed/", "memory/")
    return {key: value for key, value in row.items() if value is not None and not key.startswith(environment)}


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_gives_the_cpus_figures(arm: str, parts: Path, tmp_path: Path) -> None:
    settings = short(parts, arm)
    here = run.execute(settings, tmp_path / "cpu")
    with on_the_device():
        there = run.execute(settings, tmp_path / "device")
    assert there.status == here.status == "finished"
    alike(rows(there.folder), rows(here.folder))


@pytest.mark.parametrize("arm", ["safe", "safe-official"])
def test_a_checkpoint_is_restored_on_any_device(arm: str, parts: Path, tmp_path: Path) -> None:
    """Adam's moments, the critic and its target among it; the file's tensors lie on the CPU."""
    settings = short(parts, arm)
    with on_the_device():
        whole, second = loop_of(settings), loop_of(settings)
        whole.step()
        _, state = checkpoints.load(checkpoints.save(tmp_path, 1, whole.state()))
        second.restore(state)
        expected = steady(whole.step()[0])
        assert repr(steady(second.step()[0])) == repr(expected)
        assert all(isinstance(p, Pretended) for p in [*second.updater.policy_parameters, *second.critic.parameters()])
    here = loop_of(settings)
    here.restore(state)
    assert steady(here.step()[0]) == near(expected)
    with on_the_device():
        second.restore(here.state())
        found = steady(second.step()[0])
    assert found == near(steady(here.step()[0]))


def test_random_weights_are_the_cpus_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    here = narrow(monkeypatch, CPU)
    with on_the_device() as device:
        there = narrow(monkeypatch, device)
        assert all(isinstance(there[name], Pretended) and torch.equal(x, there[name].cpu()) for name, x in here.items())
    assert torch.equal(torch.get_rng_state(), before)


def test_best_of_n_gives_the_cpus_scores(parts: Path, tmp_path: Path) -> None:
    settings = short(parts, "ppo")
    here = sample_best_of_n(settings, tmp_path / "cpu", draws=3)
    with on_the_device():
        there = sample_best_of_n(settings, tmp_path / "device", draws=3)
    assert (there / "scores.csv").read_bytes() == (here / "scores.csv").read_bytes()


def test_a_reward_model_scores_texts_there(device: torch.device) -> None:
    tokenizer, prompts, replies = tiny_tokenizer(), ["a b", "c", "d e f"], ["g", "h i", ""]
    here = ModelReward("rm", classifier().eval(), tokenizer, chunk=2).score(prompts, replies)
    there = ModelReward("rm", classifier().eval().to(device), tokenizer, chunk=2).score(prompts, replies)
    assert type(there) is Tensor
    torch.testing.assert_close(there, here, rtol=TOLERANCE["rel"], atol=TOLERANCE["abs"])


@pytest.mark.parametrize("safe", [False, True])
def test_the_drop_in_trains_there(safe: bool, device: torch.device, tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        safe=safe,
        model=adapted(),
        reward_model=classifier(),
        value_model=None if safe else classifier(4),
        # torch's fused AdamW asks by name for devices that it knows.
        config={"optim": "adamw_torch", "total_episodes": 8, "num_ppo_epochs": 1, "missing_eos_penalty": 0.1},
    )
    made.train()
    assert len(entries(made)) == 2
    made.save_model(tmp_path / "model")
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()


# Faults that must be seen


def old_draw(adapted: nn.Module, seed: int) -> None:
    """As it was before: a generator of the CPU draws into a weight of the device."""
    generator = seeding.generator("adapter", seed)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)


def test_a_generator_of_the_cpu_is_seen(device: torch.device, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_draw", old_draw)
    with pytest.raises(RuntimeError, match="device type for generator but found 'cpu'"):
        loop_of(short(parts, "ppo"))


PLANTED: list[tuple[Any, str, Callable[..., Any]]] = [
    (kl, "_chosen", lambda log_p, tokens: log_p.gather(-1, tokens.cpu()[:, None]).squeeze(-1)),
    (OutputLayer, "few", lambda layer, hidden: (layer.weight.cpu() @ hidden.T).T),
]
"""Where; what: an index on the CPU, a weight on the CPU."""


@pytest.mark.parametrize("place", PLANTED, ids=lambda place: place[1])
def test_a_mixture_is_seen(
    place: tuple[Any, str, Callable[..., Any]], device: torch.device, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(short(parts, "ppo"))
    monkeypatch.setattr(*place)
    with pytest.raises(RuntimeError, match="to be on the same device"):
        loop.step()


def test_the_pretended_device_has_torchs_own_rules(device: torch.device) -> None:
    """Those of a GPU, where the same function is called."""
    check_rules(device)
    there = torch.arange(3.0, device=device)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device=device, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
