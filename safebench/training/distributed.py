"""Manage the processes that share a run: a single one, or several data-parallel ones started by accelerate."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object, get_int_from_env, parse_flag_from_env
from torch import Tensor, nn

from safebench.config.schema import Compute
from safebench.errors import MissingResource, UsageError

_WORLD_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
"""Variables in which a launcher gives its number of processes, in the order in which accelerate reads them."""


class Processes:
    """Rank, device, and sums over all processes, so that statistics are those of the whole batch.

    A single process does not need accelerate, which keeps one device for the lifetime of the interpreter. One run may
    therefore use the CPU and the next the GPU, or the reverse.
    """

    def __init__(self, compute: Compute) -> None:
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        self.device = _device(compute.device)
        self.rank, self.count = 0, 1
        if _launched():
            self.rank, self.count = int(self.accelerator.process_index), int(self.accelerator.num_processes)
            if ":" not in compute.device:
                self.device = self.accelerator.device
        self.main = self.rank == 0
        if self.count > 1:
            atexit.register(_leave)

    @functools.cached_property
    def accelerator(self) -> Accelerator:
        """The accelerator of these processes, on this device.

        A single process creates it on first access. If accelerate's state is for another device, the state is reset
        first, as in transformers' ``TrainingArguments``. An accelerator created earlier then shows the new state.
        """
        used = PartialState._shared_state.get("device")
        if not _launched() and used is not None and used.type != self.device.type:
            AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=self.device.type == "cpu")

    def rows(self, batch: int) -> range:
        """Return this process's rows of a batch."""
        if batch % self.count:
            raise UsageError(
                f"rollout.batch ({batch}) must be a multiple of the {self.count} processes",
                f"Use --set rollout.batch={-(-batch // self.count) * self.count}.",
            )
        size = batch // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def add(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over all processes."""
        if self.count == 1:
            return x
        total: Tensor = self.accelerator.reduce(x.clone(), reduction="sum")
        return total

    def gather(self, items: list[Any]) -> list[Any]:
        """Return the items of all processes, in the order of ranks."""
        return items if self.count == 1 else list(gather_object(items))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes, in one message."""
        if self.count == 1:
            return
        owners = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in owners])
        start = 0
        flat = self.add(flat)
        for p in owners:
            p.grad = flat[start : start + p.numel()].view_as(p).to(p.dtype)
            start += p.numel()

    def wait(self) -> None:
        """Wait until all processes reach this call."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


def _leave() -> None:
    """Leave the process group before the interpreter exits; otherwise its threads sometimes abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _launched() -> bool:
    """Return whether a launcher may have started several processes; accelerate then gives their number."""
    return torch.distributed.is_initialized() or get_int_from_env(_WORLD_SIZES, 1) > 1


def _device(name: str) -> torch.device:
    """Return the device that ``compute.device`` names; without an index, the first or this process's own."""
    kind, _, index = name.partition(":")
    if name == "auto":
        # `accelerate launch --cpu` sets this variable.
        usable = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        return torch.device("cuda" if usable else "cpu")
    if kind not in ("cpu", "cuda") or (":" in name and not index.isdecimal()):
        raise UsageError(f"compute.device is {name!r}", "Use auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        seen = f"sees {count} of them here, counted from 0" if count else "sees no CUDA device here"
        raise MissingResource(
            f"compute.device is {name}, and torch {seen}", "Run `safebench doctor`, or use --set compute.device=cpu."
        )
    return torch.device(name)
