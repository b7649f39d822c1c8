"""On a real GPU: whole runs, resumed ones, best of n, and what ``pretend_device.py`` cannot show.

Needs neither TRL nor datasets but where a test says so. `make test-gpu` runs it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from safebench import config
from safebench.config.schema import Compute, Settings
from safebench.errors import Interrupted
from safebench.metrics import METRICS
from safebench.models import seeding
from safebench.models.assemble import assemble
from safebench.models.libraries import quiet_libraries
from safebench.recording import checkpoints
from safebench.scoring import talk
from safebench.scoring.best_of_n import sample_best_of_n
from safebench.scoring.rescore import rescore
from safebench.training import run
from safebench.training.distributed import Processes
from safebench.training.loop import Loop, peak_memory
from tests.support.pretend_device import check_rules
from tests.support.tiny import CPU, narrow, tiny_policy

CUDA = torch.device("cuda")
ROOT = Path(__file__).parents[2]
DETERMINISTIC = [metric.key for metric in METRICS if not metric.environment]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    # Other releases of torch and transformers than the lock's may warn of what is new to them.
    pytest.mark.filterwarnings("default"),
]


def there(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def needs(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not there(*names), reason=f"needs {', '.join(names)}")


def small(arm: str, *more: str, device: str = CUDA.type) -> Settings:
    """Settings of three short steps on the embedded model."""
    values = {
        "rollout.batch": 8,
        "rollout.reply_tokens": 16,
        "update.steps": 3,
        "evaluation.every": 3,
        "evaluation.prompts": 8,
        "recording.checkpoint_every": 1,
        "compute.device": device,
    }
    return config.resolve(arm, overrides=[*(f"{key}={value}" for key, value in values.items()), *more])


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv")[DETERMINISTIC]


def loop_of(settings: Settings) -> Loop:
    made = Processes(settings.compute)
    with quiet_libraries():
        return Loop(settings, assemble(settings, made.device), made)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield run.execute(small("safe"), tmp_path_factory.mktemp("finished")).folder


ARMS: dict[str, list[str]] = {
    "ppo": ["critic.body=separate", "reward.noise=0.3"],
    "safe": ["recording.gradient_norms_every=1", "rollout.chunk=3", "update.microbatch=3"],
    "safe-predictive": ["update.preview.ceiling=1e-6"],
    "safe-official": [],
    "ppo-official": ["model.mixed_precision=true", "model.gradient_checkpointing=true"],
}


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_finishes(arm: str, tmp_path: Path) -> None:
    outcome = run.execute(small(arm, *ARMS[arm]), tmp_path)
    assert outcome.status == "finished"
    table = pd.read_csv(outcome.folder / "metrics.csv")
    assert table["step"].tolist() == [0, 1, 2, 3]
    assert table["eval/reward"].notna().tolist() == [True, False, False, True]
    assert (table["grad/norm"][1:] > 0).all()
    made = json.loads((outcome.folder / "manifest.json").read_text(encoding="utf-8"))
    assert made["hardware"]["device"] == torch.cuda.get_device_name()


def test_the_initial_policy_says_what_it_says_on_the_cpu() -> None:
    """Weights and noise are the CPU's, so that only rounding tells the first batches apart."""
    here, there = (loop_of(small("ppo", device=device)) for device in ("cpu", CUDA.type))
    first, second = here._sample(), there._sample()
    same = sum(a == b for a, b in zip(first.replies, second.replies, strict=True))
    assert same >= len(first.replies) - 1


@pytest.mark.parametrize("arm", ["safe", "safe-official"])
def test_initial_weights_are_the_cpus_to_the_bit(arm: str) -> None:
    here, there = (loop_of(small(arm, device=device)) for device in ("cpu", CUDA.type))
    weights = [[*loop.world.policy.trainable().values(), *loop.critic.parameters()] for loop in (here, there)]
    assert len(weights[0]) == len(weights[1]) > 8
    for a, b in zip(*weights, strict=True):
        assert b.device.type == CUDA.type
        assert torch.equal(a, b.cpu())


def test_random_weights_are_the_cpus_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (narrow(monkeypatch, device) for device in (CPU, CUDA))
    assert all(torch.equal(value, there[name].cpu()) for name, value in here.items())


def test_dropout_depends_on_where_alone() -> None:
    policy = tiny_policy(moved=0.3, dropout=0.2)
    policy.model.to(CUDA)
    ids = torch.arange(2, 14, device=CUDA).reshape(2, 6)

    def states(*where: int) -> torch.Tensor:
        with policy.training(), torch.no_grad():
            return policy.dropped_states(ids, torch.ones_like(ids), *where)

    before = torch.cuda.get_rng_state()
    first = states(0, 1)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.rand(5, device=CUDA)
    assert torch.equal(states(0, 1), first)
    assert not torch.equal(states(0, 2), first)


@pytest.mark.parametrize("arm", ["safe", "safe-official"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(arm: str, tmp_path: Path) -> None:
    settings = small(arm)
    whole = run.execute(settings, tmp_path / "whole").folder

    def stop(row: Any, events: list[str]) -> None:
        if row["step"] == 2:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        run.execute(settings, tmp_path / "parts", progress=stop)
    parts = run.execute(settings, tmp_path / "parts").folder
    # The backward pass of attention adds in no fixed order on a GPU.
    pd.testing.assert_frame_equal(rows(parts), rows(whole), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arm", ["safe", "ppo-official"])
@pytest.mark.parametrize("way", [("cpu", CUDA.type), (CUDA.type, "cpu")], ids=lambda way: "-".join(way))
def test_a_checkpoint_is_restored_on_the_other_device(arm: str, way: tuple[str, str], tmp_path: Path) -> None:
    first, second = (loop_of(small(arm, device=device)) for device in way)
    first.step()
    _, state = checkpoints.load(checkpoints.save(tmp_path, 1, first.state()))
    second.restore(state)
    adapter = second.world.policy.trainable()
    assert all(torch.equal(adapter[name].cpu(), value) for name, value in state["adapter"].items())
    row, _ = second.step()
    assert row["step"] == 2
    assert isinstance(row["loss/total"], float)
    assert second.broken is None
    for moments in second.updater.optimizer.state.values():
        assert moments["exp_avg"].device.type == way[1]


def test_one_process_uses_the_cpu_then_the_gpu_and_the_reverse(tmp_path: Path) -> None:
    found = [Processes(Compute(device=name)).device.type for name in ("cpu", "cuda", "auto", "cpu", "cuda:0")]
    assert found == ["cpu", "cuda", "cuda", "cpu", "cuda"]
    for name in ("cpu", "cuda", "cpu", "cuda"):
        assert Processes(Compute(device=name)).accelerator.device.type == name
    for device in ("cpu", CUDA.type, "cpu"):
        assert run.execute(small("ppo", "update.steps=1", device=device), tmp_path / device).status == "finished"


def test_best_of_n(tmp_path: Path) -> None:
    folder = sample_best_of_n(small("ppo", "evaluation.prompts=4"), tmp_path, draws=4)
    scores = pd.read_csv(folder / "scores.csv")
    assert len(scores) == 16
    assert scores.iloc[:, 2].nunique() > 8


def test_a_finished_run_talks_exports_and_is_scored_again(finished: Path, tmp_path: Path) -> None:
    assert len(talk.sample(finished, "Hello, how are you?", count=2)) == 2
    assert (talk.export(finished, tmp_path / "merged") / "model.safetensors").is_file()
    settings = config.load(finished / "config.yaml")
    scored = rescore(finished, settings.reward.name, device=CUDA.type, force=True)
    means = pd.read_csv(scored.files.with_name(f"{scored.files.name}.csv"))
    heldout = means[means["split"] == "heldout"].set_index("step")["mean"]
    recorded = pd.read_csv(finished / "metrics.csv").set_index("step")["eval/reward"].dropna()
    # The reward model is bfloat16 on a GPU, and the replies are read in other groups.
    assert heldout.to_numpy() == pytest.approx(recorded[heldout.index].to_numpy(), abs=0.05)


def test_two_steps_of_qwen_half_a_billion_in_bfloat16(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def length(prompts, replies):\n    return [len(reply) / 20 for reply in replies]\n", encoding="utf-8"
    )
    sizes = {
        "model.dtype": "bfloat16",
        "reward.judge": "null",
        "rollout.batch": 8,
        "rollout.reply_tokens": 16,
        "evaluation.prompts": 8,
        "compute.device": CUDA.type,
        "compute.threads": "null",
    }
    command = [sys.executable, "-m", "safebench", "run", "safe", "--model", "qwen2.5-0.5b", "--random-weights"]
    command += ["--reward", "my_rewards:length", "--steps", "2", "--results", str(tmp_path / "results")]
    command += [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("results/*/*/seed-0")
    table = pd.read_csv(folder / "metrics.csv")
    assert table["step"].tolist() == [0, 1, 2]
    assert table["kl/mean"][1] == 0.0
    assert (table["grad/norm"][1:] > 0).all()


def test_peak_memory_is_the_devices() -> None:
    held = torch.empty(2**26, device=CUDA)
    assert peak_memory(held.device) >= 256


def test_the_pretended_devices_rules_are_the_gpus() -> None:
    check_rules(CUDA)
    with pytest.raises(RuntimeError, match="generator"):
        torch.nn.init.kaiming_uniform_(torch.empty(2, 2, device=CUDA), generator=seeding.generator("adapter", 0))


@needs("trl", "datasets")
def test_trls_ppo_is_an_arm(tmp_path: Path) -> None:
    outcome = run.execute(small("trl-ppo", "update.steps=2"), tmp_path)
    assert outcome.status == "finished"
    assert pd.read_csv(outcome.folder / "metrics.csv")["step"].tolist() == [0, 1, 2]


@needs("datasets")
@pytest.mark.parametrize("safe", [False, True])
def test_the_drop_in_trains_and_resumes(safe: bool, tmp_path: Path) -> None:
    """With the defaults of a GPU: bfloat16 by autocast, and AdamW fused."""
    from tests.support.drop_in import adapted, classifier, entries, lasting, rows, trainer

    def make(folder: Path, **fields: Any) -> Any:
        given = {"use_cpu": CUDA.type == "cpu", "bf16": None, "save_strategy": "steps", "save_steps": 2}
        return trainer(
            folder,
            safe=safe,
            model=adapted(),
            reward_model=classifier(),
            value_model=None if safe else classifier(4),
            eval_dataset=rows(8),
            config={**given, **fields},
        )

    whole = make(tmp_path)
    assert whole.model.device.type == whole.accelerator.device.type == CUDA.type
    whole.train()
    assert len(entries(whole)) == 4
    assert whole.evaluate()["eval_length"] > 0
    assert len(whole.generate_completions()) == 8
    again = make(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(entries(whole)[2:], entries(again)[2:], strict=True):
        near = {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-2, abs=1e-3) for k, v in lasting(one).items()}
        assert lasting(other) == near
