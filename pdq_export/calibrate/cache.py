"""A tensor over the calibration images that passes between blocks, wherever it lies.

What a value is stored as and where never changes it: the same bits come back from every tier.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pdq_export.calibrate.tiers import Borrowed, Chosen, File, Grid, Memory, OneZero

_PARTS = 64  # in which it moves


class Cache:
    """A tensor [N, ...] over the calibration images, made by `Store.new`; rows come back on ``device``.

    ``data``: where it lies; ``count``: rows that are there already. `append` fills it batch by batch;
    ``cache[indices]`` gives rows as a new tensor, `batches` goes through it in order.
    """

    def __init__(
        self,
        device: torch.device,
        data: Memory | File | Borrowed,
        shape: Sequence[int],
        dtype: torch.dtype,
        codec: Grid | OneZero | None = None,
        *,
        count: int = 0,
    ) -> None:
        self.device, self.data, self._codec = device, data, codec
        self._shape, self._count = tuple(shape[1:]), count
        self.dtype = dtype

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...] with the rows that are there so far."""
        return self._count, *self._shape

    def append(self, rows: Tensor) -> None:
        """Add rows [n, ...]. Raises CalibrationError where the disk has no room for them."""
        self.data.write(self._count, rows if self._codec is None else self._codec.encode(rows))
        self._count += len(rows)

    def verify(self) -> None:
        """Raise CalibrationError where what was added is no output of the quantizer, as NaN is not."""
        if self._codec is not None:
            self._codec.verify()

    def __getitem__(self, chosen: Tensor | Chosen, /) -> Tensor:
        """The rows at the indices ``chosen`` [n], as a new tensor [n, ...]."""
        chosen = Chosen(chosen) if isinstance(chosen, Tensor) else chosen
        rows = self.data.rows(chosen, self.device)
        return rows if self._codec is None else self._codec.decode(rows)

    def batches(self, size: int, stop: int | None = None) -> "Batches":
        """Rows up to ``stop`` (all by default) in order, ``size`` at a time, as `slice` gives them."""
        return Batches(self, size, self._count if stop is None else min(stop, self._count))

    def slice(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``, not to be written to: often a view of what is stored, which lives as long."""
        rows = self.data.slice(start, stop).to(self.device)
        return rows if self._codec is None else self._codec.decode(rows)

    @property
    def tier(self) -> str:
        """``device``, ``host`` or ``file``."""
        return "file" if isinstance(self.data, File) else self.data.tier

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies in its tier; 0 for a tensor that belongs to the caller."""
        return self.data.nbytes

    @property
    def unwritten(self) -> int:
        """Bytes of its file that are still to come."""
        return self.data.unwritten if isinstance(self.data, File) else 0

    def close(self) -> None:
        """Give its memory or its file back; nothing can be read afterwards."""
        self.data.close()
        self._count = 0

    def move(self, data: Memory | File) -> None:
        """Have it lie there from now on; its memory is free once nothing that `slice` gave is held."""
        rows = max(self._count // _PARTS, 1)
        for start in range(0, self._count, rows):
            data.write(start, self.data.slice(start, min(start + rows, self._count)))
        self.data.close()
        self.data = data


@dataclasses.dataclass(frozen=True)
class Batches:
    """Rows of a cache in order; can be gone through more than once."""

    cache: Cache
    size: int
    stop: int

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.stop, self.size):
            yield self.cache.slice(start, min(start + self.size, self.stop))
