"""A second device for machines without a GPU: its tensors compute on the CPU, but no operator mixes them with others.

It is called "meta", which torch knows everywhere and whose backward passes need no driver. Within `second_device` what
is made on it or moved to it holds data, so that results can be compared with the CPU's to the bit. As on CUDA, a tensor
of the CPU beside its tensors is an error, but for one number. What a GPU would be asked to do is counted.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from benchmarks.launches import FREE
from pdq_export.frontend.ops.interpolate import forget_tables

DEVICE = torch.device("meta")
_aten: Any = torch.ops.aten

# Where the host has to know what a device has computed: numbers, and sizes that depend on data.
_READS = frozenset(
    "_local_scalar_dense nonzero equal is_nonzero masked_select unique_consecutive _unique2 unique_dim bincount "
    "repeat_interleave allclose".split()
)
_MAY_MIX = frozenset("copy_ _to_copy _copy_from".split())


class DeviceTensor(Tensor):
    """A tensor of the second device; ``data_here``: its data, on the CPU."""

    data_here: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=DEVICE,
        )
        made.data_here = data
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of second_device()")


@dataclasses.dataclass
class Counts:
    """What was asked of the device: ``launches`` by operator, ``reads`` that the host waits for, ``copies`` to it."""

    launches: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    reads: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    copies: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def clear(self) -> None:
        for counter in (self.launches, self.reads, self.copies):
            counter.clear()


class _Mode(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, DeviceTensor)]
        name = func.overloadpacket.__name__
        target = (kwargs or {}).get("device")
        made_here = target is not None and torch.device(target).type == DEVICE.type
        if name in ("_pin_memory", "is_pinned"):
            return args[0] if name == "_pin_memory" else False
        if not ours and not made_here:
            return func(*args, **(kwargs or {}))
        self._check(func, name, tensors)
        leaves = target is not None and not made_here
        self._count(name, func, ours, tensors, leaves)
        plain = [x.data_here if isinstance(x, DeviceTensor) else _here(x) for x in flat]
        here_args, here_kwargs = tree_unflatten(plain, spec)
        result = func(*here_args, **here_kwargs)  # a mode is off within its own dispatch
        if name == "copy_" and not isinstance(args[0], DeviceTensor):
            return args[0]
        known = {id(x.data_here): x for x in ours}
        if leaves or name == "_local_scalar_dense":
            return result
        return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else DeviceTensor(x), result)

    def _check(self, func: Any, name: str, tensors: list[Tensor]) -> None:
        others = [x for x in tensors if not isinstance(x, DeviceTensor)]
        assert all(x.device.type == "cpu" for x in others), f"{func}: a tensor of the second device without data"
        if name in _MAY_MIX or len(others) == len(tensors):
            return
        where = "index" in name and all(x.dtype in (torch.int64, torch.bool) for x in others)
        if where:
            return  # an index may lie on the CPU, from where it is copied at every use: counted below
        if any(x.ndim for x in others):
            raise AssertionError(f"{func} mixes the CPU with the second device: {[tuple(x.shape) for x in others]}")

    def _count(self, name: str, func: Any, ours: list["DeviceTensor"], tensors: list[Tensor], leaves: bool) -> None:
        others = [x for x in tensors if not isinstance(x, DeviceTensor)]
        bool_index = name in ("index", "index_put_", "index_put") and any(
            x.dtype in (torch.bool, torch.uint8) for x in tensors[1:]
        )
        leaves = leaves or (name == "copy_" and not isinstance(tensors[0], DeviceTensor))
        if name in _READS or bool_index or (leaves and ours):
            self.counts.reads[name] += 1
        elif others and (name in _MAY_MIX or any(x.ndim for x in others)):
            self.counts.copies[name] += 1
        elif name not in FREE:
            self.counts.launches[name] += 1


class _Makes(TorchFunctionMode):
    """`torch.tensor` makes a tensor on the CPU and copies it, out of sight of a dispatch mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == DEVICE.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is Tensor.tolist:  # which subclasses of Tensor have not
            return func(args[0].cpu())
        return func(*args, **kwargs)


def _here(x: Any) -> Any:
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == DEVICE.type else x


class _Generator(torch.Generator):
    """Draws on the CPU for tensors of the second device, so that both draw the same."""

    _where: torch.device

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        where = torch.device(device)
        made = super().__new__(cls, "cpu" if where.type == DEVICE.type else where)
        made._where = where
        return made

    @property
    def device(self) -> torch.device:
        return self._where


@contextlib.contextmanager
def second_device(room: int = 2**40) -> Iterator[Counts]:
    """Make `DEVICE` hold data, with ``room`` bytes for calibration; what it is asked for is counted."""
    counts = Counts()
    with (
        mock.patch("torch.Generator", _Generator),
        mock.patch("pdq_export.calibrate.store.device_budget", return_value=room),
        _Mode(counts),
        _Makes(),
    ):
        forget_tables()  # which are of tensors without data
        yield counts
    forget_tables()
