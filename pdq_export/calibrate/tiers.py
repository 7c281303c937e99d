"""What rows of a cache are stored as, and what holds them: memory of a device, a file, or whoever makes them anew."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.calibrate.spill import SpillFile
from pdq_export.errors import CalibrationError

CPU = torch.device("cpu")


class Chosen:
    """Indices [n] of rows. Several caches may be asked with one: it is copied to each device once.

    ``known``: the same indices, on as many devices as they are on already, the CPU for one.
    """

    def __init__(self, *known: Tensor) -> None:
        self._first = known[0]
        self._known = {x.device: x for x in known}

    def __len__(self) -> int:
        return len(self._first)

    def on(self, device: torch.device) -> Tensor:
        """The indices there."""
        if device not in self._known:
            self._known[device] = self._first.to(device)
        return self._known[device]


class Source(Protocol):
    """Images of the caller's, float32 [N, ...], that are made on the CPU whenever they are asked for."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, chosen: Tensor | slice, /) -> Tensor: ...


class Grid:
    """One byte instead of four for values that an activation quantizer has put out: (q - zero_point) * scale.

    What is written is checked by `verify`, at the latest before something is read: a device is waited for once.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self._scale = quantizer.scale.detach().clone()
        self._low, self._levels = quantizer.low, quantizer.high - quantizer.low
        self._unverified: Tensor | None = None  # [], whether all is on the grid

    def encode(self, x: Tensor) -> Tensor:
        q = (x / self._scale).round_().sub_(self._low)
        # Asked this way round, since NaN is neither.
        inside = ((q >= 0) & (q <= self._levels)).all()
        self._unverified = inside if self._unverified is None else self._unverified & inside
        return q.to(torch.uint8)

    def verify(self) -> None:
        if self._unverified is not None and not self._unverified:
            raise CalibrationError(
                "the output of a finished block is not on its quantizer's grid: it holds NaN; expected finite "
                "numbers; leave the block's layers at more bits"
            )
        self._unverified = None

    def decode(self, q: Tensor) -> Tensor:
        self.verify()
        # The product that fake_quantize_affine forms of the same two float32 numbers.
        return q.to(torch.float32).add_(self._low).mul_(self._scale)


class OneZero:
    """Values of a quantizer as they are, but for -0.0: integers have one zero, and so has every tier."""

    def encode(self, x: Tensor) -> Tensor:
        return x + 0.0

    def verify(self) -> None: ...

    def decode(self, x: Tensor) -> Tensor:
        return x


class Memory:
    """Rows of a tensor on one device."""

    def __init__(self, data: Tensor, tier: str, *, owned: bool = True) -> None:
        self.data, self.tier, self.owned = data, tier, owned

    @property
    def nbytes(self) -> int:
        return self.data.nbytes if self.owned else 0

    def write(self, start: int, rows: Tensor) -> None:
        stop = start + len(rows)
        if stop > len(self.data):  # a tensor whose first axis does not count images can turn out longer
            self.data = torch.cat([self.data[:start], rows.to(self.data.device)])
        else:
            self.data[start:stop] = rows

    def rows(self, chosen: Chosen, device: torch.device) -> Tensor:
        if self.data.device == device:
            return self.data[chosen.on(device)]
        # Only the rows of a step are pinned: pinning whole tensors rounds each up to a power of two.
        pinned = device.type == "cuda"
        buffer = torch.empty((len(chosen), *self.data.shape[1:]), dtype=self.data.dtype, pin_memory=pinned)
        torch.index_select(self.data, 0, chosen.on(CPU), out=buffer)
        return buffer.to(device, non_blocking=True)

    def slice(self, start: int, stop: int) -> Tensor:
        return self.data[start:stop]

    def close(self) -> None:
        self.data = self.data[:0].clone()


class File:
    """Rows in a file."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._file = SpillFile()
        self._shape, self._dtype = tuple(shape[1:]), dtype
        self._row = math.prod(self._shape) * dtype.itemsize
        self._expected = shape[0] * self._row
        self._written = 0

    @property
    def nbytes(self) -> int:
        return max(self._expected, self._written)

    @property
    def unwritten(self) -> int:
        return max(self._expected - self._written, 0)

    def write(self, start: int, rows: Tensor) -> None:
        self._file.write(start * self._row, rows)
        self._written = max(self._written, (start + len(rows)) * self._row)

    def rows(self, chosen: Chosen, device: torch.device) -> Tensor:
        result = torch.empty((len(chosen), *self._shape), dtype=self._dtype, pin_memory=device.type == "cuda")
        # Forwards through the file, each row to its place in the batch.
        for source, target in sorted(zip(chosen.on(CPU).tolist(), range(len(chosen)), strict=True)):
            self._file.read(source * self._row, result[target])
        return result.to(device, non_blocking=True)

    def slice(self, start: int, stop: int) -> Tensor:
        result = torch.empty((stop - start, *self._shape), dtype=self._dtype)
        self._file.read(start * self._row, result)
        return result

    def close(self) -> None:
        self._file.close()
        self._expected = self._written = 0


class Borrowed:
    """Rows that are made anew whenever they are read."""

    tier, nbytes = "host", 0

    def __init__(self, source: Source, quantizer: ActivationQuantizer | None = None) -> None:
        self._source, self._quantizer = source, quantizer

    def through(self, quantizer: ActivationQuantizer) -> "Borrowed":
        return Borrowed(self._source, quantizer)

    def write(self, start: int, rows: Tensor) -> None:
        raise TypeError("what the caller gives is not written to")

    def rows(self, chosen: Chosen, device: torch.device) -> Tensor:
        return self._made(self._source[chosen.on(CPU)].to(device))

    def slice(self, start: int, stop: int) -> Tensor:
        return self._made(self._source[start:stop])

    @torch.no_grad()
    def _made(self, rows: Tensor) -> Tensor:
        if self._quantizer is None:
            return rows
        # As every tier gives it back, with one zero.
        quantized: Tensor = self._quantizer(rows.to(self._quantizer.scale.device))
        return quantized + 0.0

    def close(self) -> None: ...
