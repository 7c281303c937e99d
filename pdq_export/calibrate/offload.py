"""What a step keeps for its backward pass, in a file where memory does not suffice."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pdq_export.calibrate.spill import SpillFile

_SMALLEST = 2**20  # bytes; smaller tensors stay in memory


class Offload:
    """A context in which saved tensors beyond ``room`` bytes are written to a file and read back when needed.

    They come back bit for bit. ``resident``: what is in memory in any case (weights). For tensors on the CPU.
    """

    def __init__(self, room: int, resident: Iterable[Tensor]) -> None:
        self.kept = 0
        self.file = SpillFile()
        self._room = room
        self._resident = {x.untyped_storage().data_ptr() for x in resident}
        self._end = 0
        self._free: dict[int, list[int]] = {}  # starts of free places by size: every step saves the same sizes
        self._known: dict[tuple[Any, ...], weakref.ref[_Written]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> "Offload":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self.file.close()

    def write(self, x: Tensor) -> int:
        """Write a tensor and return where it begins. Raises CalibrationError where the disk has no room."""
        places = self._free.get(x.nbytes)
        start = places.pop() if places else self._end
        self._end = max(self._end, start + x.nbytes)
        self.file.write(start, x)
        return start

    def release(self, start: int, nbytes: int, key: tuple[Any, ...]) -> None:
        """The graph has let go of what lies at ``start``: its place may be used again."""
        self._free.setdefault(nbytes, []).append(start)
        del self._known[key]

    def _pack(self, x: Tensor) -> "Tensor | _Kept | _Written":
        x = x.detach()  # or it would close a cycle with the graph that holds it
        here = x.device.type == "cpu" and x.untyped_storage().data_ptr() not in self._resident
        # A tensor comes back contiguous; from another layout operators could choose another kernel.
        if not here or x.nbytes < _SMALLEST or not x.is_contiguous():
            return x
        # An activation is saved by the operator that writes it and again by the one that reads it.
        storage = StorageWeakRef(x.untyped_storage())
        key = (storage.cdata, x.storage_offset(), x.shape, x.dtype, x._version)
        known = self._known.get(key)
        if known is not None and (written := known()) is not None:
            return written
        if self.kept + x.nbytes <= self._room:
            return _Kept(self, x)
        written = _Written(self, x, storage, key)
        self._known[key] = weakref.ref(written)
        return written


class _Kept:
    """A saved tensor in memory, counted for as long as the graph holds it."""

    def __init__(self, owner: Offload, x: Tensor) -> None:
        self.owner, self.x = owner, x
        owner.kept += x.nbytes

    def __del__(self) -> None:
        self.owner.kept -= self.x.nbytes


class _Written:
    """A saved tensor in the file.

    ``storage`` is a weak reference, without which the address in ``key`` could become another tensor's.
    """

    def __init__(self, owner: Offload, x: Tensor, storage: StorageWeakRef, key: tuple[Any, ...]) -> None:
        self.owner, self.storage, self.key = owner, storage, key
        self.shape, self.dtype, self.nbytes = x.shape, x.dtype, x.nbytes
        self.start = owner.write(x)

    def read(self) -> Tensor:
        x = torch.empty(self.shape, dtype=self.dtype)
        self.owner.file.read(self.start, x)
        return x

    def __del__(self) -> None:
        if hasattr(self, "start"):
            self.owner.release(self.start, self.nbytes, self.key)


def _unpack(held: Tensor | _Kept | _Written) -> Tensor:
    if isinstance(held, _Kept):
        return held.x
    return held.read() if isinstance(held, _Written) else held
