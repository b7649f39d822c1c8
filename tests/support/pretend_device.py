"""A device that is pretended: tensors that hold their numbers on the CPU, say that they lie elsewhere, and do not mix.

torch's FakeTensorMode knows no values, and the loop asks for values everywhere (``item``, ``tolist``, masks as
indices). Here every operation computes, after the check that torch makes on a GPU:
1. tensors of two devices meet in ``copy_`` only;
2. but a tensor on the CPU may index one on the device, and a number on the CPU (no dimensions) may meet it elementwise;
3. a generator of the CPU does not draw on the device;
4. a tensor on the device has no ``numpy``.

The device is called ``lazy``: a build without CUDA makes no tensor that says ``cuda``, its autograd runs the backward
pass of ``lazy`` as of ``cpu``, and no library treats that name as special. So what asks for ``device.type == "cuda"``
(clock, peak memory, the device's own generator) is not passed through here, but by the tests marked ``gpu``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy")
_CPU = torch.device("cpu")
_aten = torch.ops.aten
_COPIES = (_aten.copy_, _aten._to_copy)
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_ELEMENTWISE = (_aten.where, _aten.masked_fill, _aten.masked_fill_, _aten.fill_)
"""Beside what torch itself calls pointwise."""


class Pretended(Tensor):
    """A tensor on the pretended device; ``inner`` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What is saved loads on the CPU, as ``map_location`` has it for a tensor of a GPU."""
        return self.inner.__reduce_ex__(protocol)


class _Operations(TorchDispatchMode):
    """Sees what makes a tensor out of nothing, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Sees what torch answers without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and _there(kwargs.get("device")):
            return func(*args, **(kwargs | {"device": _CPU})).to(DEVICE)
        if func in (Tensor.tolist, Tensor.untyped_storage, Tensor.data_ptr) and isinstance(args[0], Pretended):
            return func(args[0].inner)
        if func is Tensor.numpy and isinstance(args[0], Pretended):
            raise TypeError("can't convert a tensor on the device to numpy. Use Tensor.cpu() first.")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Pretended):
            args = (args[0], _rows(args[1]), *args[2:])
        found = func(*args, **kwargs)
        if func is Tensor.data.__set__ and isinstance(args[0], Pretended):  # type: ignore[attr-defined]
            args[0].inner = args[1].inner
        return found


@contextlib.contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Within this context ``DEVICE`` can be used as any device."""
    with _Functions(), _Operations():
        yield DEVICE


def check_rules(device: torch.device) -> None:
    """Check what may meet on ``device`` and what may not; for the pretended one and for a GPU."""
    here = torch.arange(6.0).reshape(2, 3)
    there = here.to(device)
    assert there.device.type == device.type
    assert (there + torch.tensor(2.0)).tolist() == (here + 2).tolist()
    assert there[torch.tensor([1])].tolist() == there[[1]].tolist() == here[[1]].tolist()
    assert there[there > 4].tolist() == there[here > 4].tolist() == [5.0]
    for mixed in (
        lambda: there + here,
        lambda: here[torch.tensor([1], device=device)],
        lambda: torch.cat([there, here]),
        lambda: here * there[0, 0],
        lambda: there @ here.T,
        lambda: there.gather(1, torch.tensor([[0], [1]])),
        lambda: torch.nn.functional.embedding(torch.tensor([1]), there),
        lambda: torch.where(there > 1, there, here),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mixed()
    there[:, :1] = torch.zeros(2, 1)
    there[1, 2] = torch.tensor(7.0)
    assert there.tolist() == [[0.0, 1.0, 2.0], [0.0, 4.0, 7.0]]


def _rows(index: Any) -> Any:
    """Return an index with its lists as tensors on the device, which torch makes of them."""
    if isinstance(index, tuple):
        return tuple(map(_rows, index))
    return torch.tensor(index).to(DEVICE) if isinstance(index, list) else index


def _there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []
    inner_args = [_inner(x, tensors) for x in args]
    inner_kwargs = {name: _inner(x, tensors) for name, x in kwargs.items()}
    there = any(isinstance(x, Pretended) for x in tensors)
    if there:
        _refuse_mixtures(func, args, tensors)
    result_there = _there(kwargs["device"]) if kwargs.get("device") is not None else there
    generator = kwargs.get("generator")
    if generator is not None and result_there:
        raise RuntimeError(f"Expected a 'lazy' device type for generator but found '{generator.device.type}'")
    found = func(*inner_args, **inner_kwargs)
    returns = func._schema.returns
    if returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        return kwargs.get("out", args[0])
    return _outer(found) if result_there else found


def _inner(x: Any, seen: list[Tensor]) -> Any:
    """Return an argument with the CPU's tensors in place of ours, and add what tensors it has to ``seen``."""
    if isinstance(x, Tensor):
        seen.append(x)
        return x.inner if isinstance(x, Pretended) else x
    if isinstance(x, (list, tuple)):
        return [_inner(item, seen) for item in x]
    return _CPU if isinstance(x, torch.device) and _there(x) else x


def _outer(x: Any) -> Any:
    if isinstance(x, Tensor):
        return Pretended(x)
    return type(x)(map(_outer, x)) if isinstance(x, (list, tuple)) else x


def _refuse_mixtures(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    here = [x for x in tensors if not isinstance(x, Pretended)]
    packet = func.overloadpacket
    if not here or packet in _COPIES:
        return
    if packet in _INDEXING and isinstance(args[0], Pretended):
        here = [x for x in args[2:3] if isinstance(x, Tensor) and not isinstance(x, Pretended)]
    pointwise = torch.Tag.pointwise in func.tags or packet in (*_ELEMENTWISE, *_INDEXING)
    if not (pointwise and all(x.dim() == 0 for x in here)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {DEVICE} and cpu")
