"""The processes that share a run: one alone, or several data-parallel ones started by accelerate."""

from __future__ import annotations

import atexit
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from safebench.errors import MissingResource, UsageError
from safebench.settings import Compute


class Processes:
    """Rank, device and the sums over all processes that make statistics those of the whole batch."""

    def __init__(self, compute: Compute) -> None:
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        wanted = _device_type(compute.device)
        self.accelerator = Accelerator(cpu=wanted == "cpu")
        self.rank = int(self.accelerator.process_index)
        self.count = int(self.accelerator.num_processes)
        self.main = self.rank == 0
        if self.count > 1:
            atexit.register(_leave)
        self.device = torch.device(compute.device) if ":" in compute.device else self.accelerator.device

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
        """Replace each gradient by its sum over all processes (one message)."""
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
        """Wait until all processes are here."""
        self.accelerator.wait_for_everyone()


def _leave() -> None:
    """Leave the group before the interpreter goes: its threads would otherwise now and then abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _device_type(name: str) -> str:
    kind = name.split(":")[0]
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise MissingResource(
            "compute.device is cuda, and torch sees no CUDA device here",
            "Run `safebench doctor`, or use --set compute.device=cpu.",
        )
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"compute.device is {name!r}", "Use auto, cpu, cuda or cuda:N.")
    return kind
