"""One process may run on the CPU, then on a GPU, then on the CPU again; what is no device is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from safebench.config.schema import Compute
from safebench.errors import MissingResource, UsageError
from safebench.training.distributed import Processes
from tests.support.drop_in import trainer


@contextlib.contextmanager
def one_gpu() -> Iterator[None]:
    """Let torch say that there is one CUDA device, as far as choosing a device asks; nothing is put on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "pretended")
        yield


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Begin and end without a state of accelerate's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def gpu() -> Iterator[None]:
    with one_gpu():
        yield


def kinds(*names: str) -> list[str]:
    return [Processes(Compute(device=name)).device.type for name in names]


@pytest.mark.usefixtures("gpu")
def test_a_process_uses_the_cpu_then_the_gpu_and_the_reverse() -> None:
    assert kinds("cpu", "cuda", "auto", "cpu", "cuda:0", "cpu") == ["cpu", "cuda", "cuda", "cpu", "cuda", "cpu"]


@pytest.mark.usefixtures("gpu")
def test_a_run_leaves_accelerates_state_alone() -> None:
    """A user's own accelerator, of the CPU or of the GPU, stays what it was."""
    own = Accelerator(cpu=True)
    assert kinds("cuda", "cpu") == ["cuda", "cpu"]
    assert own.device.type == AcceleratorState().device.type == "cpu"


@pytest.mark.usefixtures("gpu")
def test_the_accelerator_is_of_the_processes_device_whatever_was_before() -> None:
    for name in ("cpu", "cuda", "cpu", "cuda"):
        made = Processes(Compute(device=name))
        assert made.accelerator.device.type == name
        assert made.accelerator is made.accelerator
        assert (made.accelerator.num_processes, made.accelerator.is_main_process) == (1, True)


def test_a_drop_in_on_the_cpu_works_after_one_on_the_gpu(tmp_path: Path) -> None:
    with one_gpu():
        assert Processes(Compute(device="cuda")).accelerator.device.type == "cuda"
    made = trainer(tmp_path)
    assert made.accelerator.device.type == made.model.device.type == "cpu"
    made.train()
    assert made.accelerator.unwrap_model(made.model) is made.model


@pytest.mark.usefixtures("gpu")
def test_accelerate_launch_with_cpu_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert kinds("auto", "cuda") == ["cpu", "cuda"]


@pytest.mark.usefixtures("gpu")
def test_a_device_beyond_the_last_is_refused() -> None:
    with pytest.raises(MissingResource, match=r"compute\.device is cuda:1, and torch sees 1 of them here"):
        Processes(Compute(device="cuda:1"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "auto:1", "mps", ""])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"compute\.device is"):
        Processes(Compute(device=name))


def test_cuda_without_a_device_is_refused() -> None:
    """Tests that are not marked gpu see none, on a machine that has one too."""
    with pytest.raises(MissingResource, match="sees no CUDA device here"):
        Processes(Compute(device="cuda"))
