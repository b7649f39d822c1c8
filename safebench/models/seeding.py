"""Make every random draw of a run, by generators derived from a purpose, the seed and the place of use.

Nothing else draws random numbers. Algorithms with the same seed therefore share initial weights, the order of
prompts and, row by row, the sampling noise. Numbers are drawn on the CPU and copied to the device that uses them, so a
run starts in the same way on every device. Dropout is the exception (``seeded``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def generator(purpose: str, *where: int) -> torch.Generator:
    """Return a CPU generator that depends on its arguments alone."""
    return torch.Generator().manual_seed(_digest(purpose, *where))


class Draws:
    """Successive draws for one purpose, written into tensors of any device and type.

    Numbers are drawn on the CPU in float32 (float64 for a float64 tensor) and copied. Rounding to the target's type is
    the only difference between devices and types.
    """

    def __init__(self, purpose: str, *where: int) -> None:
        self._generator = generator(purpose, *where)

    def normal(self, target: Tensor, deviation: float) -> None:
        """Fill ``target`` with normal numbers of mean zero."""
        _put(target, _room(target).normal_(0.0, deviation, generator=self._generator))

    def uniform(self, target: Tensor, bound: float) -> None:
        """Fill ``target`` with numbers from [-bound, bound)."""
        _put(target, _room(target).uniform_(-bound, bound, generator=self._generator))

    def kaiming(self, target: Tensor) -> None:
        """Fill a weight [outputs, inputs] as torch initialises a linear layer: uniform in +-1/sqrt(inputs)."""
        _put(target, nn.init.kaiming_uniform_(_room(target), a=5**0.5, generator=self._generator))


def _room(target: Tensor) -> Tensor:
    return torch.empty(target.shape, dtype=torch.promote_types(target.dtype, torch.float32), device="cpu")


@torch.no_grad()
def _put(target: Tensor, drawn: Tensor) -> None:
    target.copy_(drawn)


@contextlib.contextmanager
def seeded(device: torch.device, purpose: str, *where: int) -> Iterator[None]:
    """Seed torch's own generators from the arguments alone within this context; restore them afterwards.

    This is for draws that can use no other generator: dropout, and the libraries' own initialisation of layers.
    ``device`` is the device that draws, besides the CPU. On CUDA dropout uses the device's generator, so its masks
    differ from the CPU's. Drawing them on the CPU and copying them would cost more than the forward pass.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        digest = _digest(purpose, *where)
        torch.default_generator.manual_seed(digest)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(digest)
        yield


def undisturbed(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context that restores torch's own generators at its end, whatever draws within it."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextlib.contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Make a library build models on the CPU, with weights that depend on ``seed`` alone, within this context.

    torch's own generator, from which libraries draw, is restored afterwards. Large tensors are drawn on all cores.
    """
    first = int(torch.randint(2**62, (1,), generator=generator("weights", seed)))
    with torch.random.fork_rng([]), torch.device("cpu"), ThreadPoolExecutor(os.cpu_count()) as threads:
        torch.default_generator.manual_seed(first)
        with _InPieces(seed, threads):
            yield


class _InPieces(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws each large tensor in pieces from one generator per piece; the number of threads does not change any bit."""

    PIECE = 2**20
    """Number of elements of a piece."""
    DRAWING = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)

    def __init__(self, seed: int, threads: ThreadPoolExecutor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed, self._threads, self._drawn = seed, threads, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func not in self.DRAWING or args[0].numel() <= self.PIECE or not args[0].is_contiguous():
            return func(*args, **options)
        self._drawn += 1
        pieces = args[0].view(-1).split(self.PIECE)
        own = [generator("weights", self._seed, self._drawn, i) for i in range(len(pieces))]
        for _ in self._threads.map(lambda piece, g: func(piece, *args[1:], generator=g), pieces, own):
            pass
        return args[0]


def _digest(purpose: str, *where: int) -> int:
    digest = hashlib.blake2b(":".join([purpose, *map(str, where)]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(purpose: str, seed: int, step: int, rows: range, tokens: int) -> Tensor:
    """Return the sampling noise of a batch's rows, [rows, tokens] in [0, 1), float64.

    Row i's noise depends on (purpose, seed, step, i) only, not on how rows are grouped.
    """
    return torch.stack(
        [torch.rand(tokens, dtype=torch.float64, generator=generator(purpose, seed, step, row)) for row in rows]
    )


def normals(purpose: str, seed: int, step: int, rows: Iterable[int]) -> Tensor:
    """Return one standard normal number per row, [rows], float32; each depends on (purpose, seed, step, row) only."""
    return torch.stack([torch.randn((), generator=generator(purpose, seed, step, row)) for row in rows])


def permutation(size: int, purpose: str, *where: int) -> list[int]:
    """Return the numbers below ``size`` in an order that depends on the arguments alone."""
    return torch.randperm(size, generator=generator(purpose, *where)).tolist()


def order(seed: int, epoch: int, size: int) -> list[int]:
    """Return the order in which one pass over ``size`` prompts visits them."""
    return permutation(size, "prompts", seed, epoch)


def batch_indices(seed: int, step: int, batch: int, size: int) -> list[int]:
    """Return the prompts of training step ``step`` (from 1): consecutive pieces of shuffled passes.

    The result depends on the arguments alone, so a resumed run needs no further state.
    """
    first = (step - 1) * batch
    positions = range(first, first + batch)
    passes = {epoch: order(seed, epoch, size) for epoch in {p // size for p in positions}}
    return [passes[p // size][p % size] for p in positions]
