"""Where the block inputs and outputs of the calibration images lie: on the device, in host memory or in a file.

What a value is stored as and where never changes it: the same bits come back from every tier.
"""

import dataclasses
import itertools
import logging
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from pdq_export.calibrate.memory import SCRATCH, device_budget, enough, format_size, process_budget, trim_heap
from pdq_export.calibrate.offload import Offload
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.calibrate.spill import SpillFile, check_room
from pdq_export.errors import CalibrationError, OptionError
from pdq_export.exhaustion import is_exhaustion

logger = logging.getLogger(__name__)

_COPIED = 64  # rows of a source at a time
# Bytes of caches in host memory where nobody says how much the process may take: they grow with the images. What was
# written to a file is read from the system's page cache, as long as nobody else needs that memory.
_KEPT = 512 * 2**20
_CPU = torch.device("cpu")


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


class _Grid:
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


class _OneZero:
    """Values of a quantizer as they are, but for -0.0: integers have one zero, and so has every tier."""

    def encode(self, x: Tensor) -> Tensor:
        return x + 0.0

    def verify(self) -> None: ...

    def decode(self, x: Tensor) -> Tensor:
        return x


class _Memory:
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
        torch.index_select(self.data, 0, chosen.on(_CPU), out=buffer)
        return buffer.to(device, non_blocking=True)

    def slice(self, start: int, stop: int) -> Tensor:
        return self.data[start:stop]

    def close(self) -> None:
        self.data = self.data[:0].clone()


class _File:
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
        for source, target in sorted(zip(chosen.on(_CPU).tolist(), range(len(chosen)), strict=True)):
            self._file.read(source * self._row, result[target])
        return result.to(device, non_blocking=True)

    def slice(self, start: int, stop: int) -> Tensor:
        result = torch.empty((stop - start, *self._shape), dtype=self._dtype)
        self._file.read(start * self._row, result)
        return result

    def close(self) -> None:
        self._file.close()
        self._expected = self._written = 0


class _Borrowed:
    """Rows that are made anew whenever they are read."""

    tier, nbytes = "host", 0

    def __init__(self, source: Source, quantizer: ActivationQuantizer | None = None) -> None:
        self._source, self._quantizer = source, quantizer

    def through(self, quantizer: ActivationQuantizer) -> "_Borrowed":
        return _Borrowed(self._source, quantizer)

    def write(self, start: int, rows: Tensor) -> None:
        raise TypeError("what the caller gives is not written to")

    def rows(self, chosen: Chosen, device: torch.device) -> Tensor:
        return self._made(self._source[chosen.on(_CPU)].to(device))

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


class Cache:
    """A tensor [N, ...] over the calibration images, made by `Store.new`; rows come back on the store's device.

    `append` fills it batch by batch; ``cache[indices]`` gives rows as a new tensor, `batches` goes through it in order.
    """

    def __init__(
        self,
        store: "Store",
        data: _Memory | _File | _Borrowed,
        shape: Sequence[int],
        dtype: torch.dtype,
        codec: _Grid | _OneZero | None = None,
    ) -> None:
        self._store, self._data, self._codec = store, data, codec
        self._shape, self._count = tuple(shape[1:]), 0
        self.dtype = dtype

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...] with the rows that are there so far."""
        return self._count, *self._shape

    @property
    def device(self) -> torch.device:
        """Where rows come back."""
        return self._store.device

    def append(self, rows: Tensor) -> None:
        """Add rows [n, ...]. Raises CalibrationError where the disk has no room for them."""
        self._data.write(self._count, rows if self._codec is None else self._codec.encode(rows))
        self._count += len(rows)

    def verify(self) -> None:
        """Raise CalibrationError where what was added is no output of the quantizer, as NaN is not."""
        if self._codec is not None:
            self._codec.verify()

    def __getitem__(self, chosen: Tensor | Chosen, /) -> Tensor:
        """The rows at the indices ``chosen`` [n], as a new tensor [n, ...]."""
        chosen = Chosen(chosen) if isinstance(chosen, Tensor) else chosen
        rows = self._data.rows(chosen, self._store.device)
        return rows if self._codec is None else self._codec.decode(rows)

    def batches(self, size: int, stop: int | None = None) -> "Batches":
        """Rows up to ``stop`` (all by default) in order, ``size`` at a time, not to be written to."""
        return Batches(self, size, self._count if stop is None else min(stop, self._count))

    def slice(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``, not to be written to."""
        rows = self._data.slice(start, stop).to(self._store.device)
        return rows if self._codec is None else self._codec.decode(rows)

    @property
    def tier(self) -> str:
        """``device``, ``host`` or ``file``."""
        return "file" if isinstance(self._data, _File) else self._data.tier

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies in its tier; 0 for a tensor that belongs to the caller."""
        return self._data.nbytes

    @property
    def unwritten(self) -> int:
        """Bytes of its file that are still to come."""
        return self._data.unwritten if isinstance(self._data, _File) else 0

    def close(self) -> None:
        """Give its memory or its file back; nothing can be read afterwards."""
        self._data.close()
        self._count = 0

    def _move(self, data: _Memory | _File, rows: int) -> None:
        for start in range(0, self._count, rows):
            data.write(start, self._data.slice(start, min(start + rows, self._count)))
        self._data.close()
        self._data = data


@dataclasses.dataclass(frozen=True)
class Batches:
    """Rows of a cache in order; can be gone through more than once."""

    cache: Cache
    size: int
    stop: int

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.stop, self.size):
            yield self.cache.slice(start, min(start + self.size, self.stop))


class Store:
    """Makes caches and keeps their sum within a budget for each tier: the device, then host memory, then files.

    ``device_bytes``: for caches and the working set of a step together, of which caches get half at most; None sets
    no limit, and then everything stays on the device as it is. ``host_bytes``: for caches in host memory where that
    is not the device; None sets no limit. ``kept_bytes``: for those in host memory, where the disk has room for others;
    None sets no limit. ``peak``: the most bytes that all caches occupied at one time.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        device_bytes: int | None = None,
        host_bytes: int | None = 0,
        kept_bytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        self._max_memory = max_memory
        self._told = False
        self.device = torch.empty(0, device=device).device  # with its index, which tensors carry
        self.peak = 0
        self._room = device_bytes
        self._reserved = self._floor = self._least = 0
        self._host, self._kept = host_bytes, kept_bytes
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()

    @classmethod
    def of_process(cls, device: torch.device, max_memory: int | None) -> "Store":
        """Budgets for a process that shall stay within ``max_memory`` bytes of host memory.

        With None there is no limit but for caches, see ``kept_bytes``. What the process holds already is subtracted.
        Raises OptionError where that is all beside another device; on a CPU that is for `require` to say, which knows
        what would do.
        """
        if max_memory is None:
            room = None if device.type == "cpu" else device_budget(device)
            return cls(device, device_bytes=room, host_bytes=None, kept_bytes=_KEPT)
        left = process_budget(max_memory)
        if device.type == "cpu":
            return cls(device, device_bytes=left, max_memory=max_memory)
        if left <= 0:
            raise OptionError(
                f"--max-memory {format_size(max_memory)}: the process holds {format_size(max_memory - left)} before "
                f"calibration begins; give --max-memory {enough(max_memory - left)} or more"
            )
        return cls(device, device_bytes=device_budget(device), host_bytes=left)

    @property
    def limited(self) -> bool:
        """Whether anything but the device is ever used."""
        return self._room is not None

    @property
    def used(self) -> dict[str, int]:
        """Bytes of all caches by tier."""
        sums = dict.fromkeys(("device", "host", "file"), 0)
        for cache in self._caches:
            sums[cache.tier] += cache.nbytes
        return sums

    def new(self, shape: Sequence[int], dtype: torch.dtype, quantizer: ActivationQuantizer | None = None) -> Cache:
        """An empty cache for ``shape`` = [N, ...] values; values that ``quantizer`` has put out can take one byte each.

        Raises CalibrationError where they need a file and the disk has no room.
        """
        codec = None if quantizer is None else _OneZero() if self._can_waste(shape, dtype) else _Grid(quantizer)
        stored = torch.uint8 if isinstance(codec, _Grid) else dtype
        cache = Cache(self, self._place(tuple(shape), stored), shape, dtype, codec)
        self._register(cache)
        return cache

    def adopt(self, x: Tensor | Source) -> Cache:
        """A cache of the caller's own tensor, which is not copied unless the device has room for it and is another.

        What the caller makes as it is needed goes to such a device as well, and is not kept otherwise.
        """
        if not isinstance(x, Tensor):
            return self._adopt_source(x)
        copied = x.device != self.device and self._fits(x.nbytes)
        x = x.to(self.device) if copied else x
        tier = "device" if x.device == self.device else "host"
        cache = Cache(self, _Memory(x, tier, owned=copied), x.shape, x.dtype)
        cache._count = len(x)
        self._register(cache)
        return cache

    def quantized(self, x: Cache, quantizer: ActivationQuantizer) -> Cache | None:
        """What ``quantizer`` makes of rows that are made as they are needed, likewise; None where ``x`` has others."""
        if not isinstance(x._data, _Borrowed):
            return None
        cache = Cache(self, x._data.through(quantizer), x.shape, x.dtype)
        cache._count = len(x)
        self._register(cache)
        return cache

    def _adopt_source(self, source: Source) -> Cache:
        if self.device.type != "cpu" and self._fits(math.prod(source.shape) * source.dtype.itemsize):
            copied = self.new(source.shape, source.dtype)
            for start in range(0, len(source), _COPIED):
                copied.append(source[start : start + _COPIED].to(self.device))
            return copied
        cache = Cache(self, _Borrowed(source), source.shape, source.dtype)
        cache._count = len(source)
        self._register(cache)
        return cache

    def require(self, nbytes: int, passes: int, batch_size: int) -> None:
        """Keep room for ``passes`` at any time, and make sure that there is room for ``nbytes``.

        Raises OptionError, with the smallest limit that will do, where ``max_memory`` is too small.
        """
        if self._room is None or self.device.type != "cpu":
            return
        self._floor = passes + SCRATCH
        nbytes += SCRATCH
        if self._max_memory is not None and nbytes > self._room:
            held = self._max_memory - self._room
            raise OptionError(
                f"--max-memory {format_size(self._max_memory)}: the process holds {format_size(held)} before "
                f"calibration begins, and the largest pass or step takes {format_size(nbytes)}, which no file "
                f"can replace; give --max-memory {enough(held + nbytes)} or more, or fewer than {batch_size} "
                "images at a time (--set batch_size=N)"
            )

    def reserve(self, nbytes: int, *, least: int = 0) -> None:
        """Leave room for a working set of ``nbytes``; caches move out of the device where they must.

        ``least``: the part of it that has to be in memory.
        """
        self._reserved, self._least = nbytes, least
        if not self.limited:
            return
        inside = sorted((c for c in self._caches if c.tier == "device"), key=lambda c: c.nbytes, reverse=True)
        for cache in inside:
            if self._fits(0) or not isinstance(cache._data, _Memory) or not cache.nbytes:
                break
            shape, dtype = tuple(cache._data.data.shape), cache._data.data.dtype
            cache._move(self._place(shape, dtype), rows=max(shape[0] // 64, 1))
        trim_heap()

    def evict(self) -> bool:
        """Move every cache off a device whose memory has run out, and keep all others off it; whether that frees any.

        A CPU's memory is what `reserve` minds.
        """
        if self.device.type == "cpu":
            return False
        inside = [c for c in self._caches if c.tier == "device" and c.nbytes and isinstance(c._data, _Memory)]
        self._room = 0
        for cache in inside:
            assert isinstance(cache._data, _Memory)
            data = cache._data.data
            cache._move(self._place(tuple(data.shape), data.dtype), rows=max(len(data) // 64, 1))
        if inside:
            logger.info("the GPU's memory has run out: %d cached tensors move to the host", len(inside))
        return bool(inside)

    def step(self, modules: Iterable[nn.Module]) -> AbstractContextManager[object]:
        """A context for steps of ``modules``, with what was reserved: beyond the budget they use a file as well."""
        if self._room is None or self._reserved <= self._room or self.device.type != "cpu":
            return nullcontext()
        check_room(self._reserved)
        if not self._told and self._max_memory is not None:
            self._told = True
            logger.warning(
                "--max-memory %s: steps need %s of memory, and a part of that goes to files: calibration can take ten "
                "times as long; with about %s it would stay in memory",
                format_size(self._max_memory),
                format_size(self._reserved),
                enough(self._max_memory - self._room + self._reserved),
            )
        resident = itertools.chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules)
        return Offload(max(self._room - self.used["device"] - self._least, 0), resident)

    def close(self) -> None:
        """Close every cache."""
        for cache in list(self._caches):
            cache.close()

    def _register(self, cache: Cache) -> None:
        self._caches.add(cache)
        self.peak = max(self.peak, sum(self.used.values()))

    def _can_waste(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Whether quantized values may lie there as they are: coding takes launches at every step, room little else.

        On a device twice as much as they take has to be left. What ``max_memory`` limits, and files hold, is coded.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if self.device.type == "cpu":
            return not self.limited and self._tier(nbytes) != "file"
        return self._fits(2 * nbytes)

    def _fits(self, nbytes: int) -> bool:
        if self._room is None:
            return True
        budget = max(min(self._room // 2, self._room - max(self._reserved, self._floor)), 0)
        return self.used["device"] + nbytes <= budget

    def _place(self, shape: tuple[int, ...], dtype: torch.dtype) -> _Memory | _File:
        nbytes = math.prod(shape) * dtype.itemsize
        tier = self._tier(nbytes)
        if tier == "file" and self._has_room(nbytes):
            return _File(shape, dtype)
        on_device = tier == "device" or (tier == "file" and self._fits(nbytes))
        try:
            device = self.device if on_device else _CPU
            return _Memory(torch.empty(shape, dtype=dtype, device=device), "device" if on_device else "host")
        except RuntimeError as error:
            if not on_device or self.device.type == "cpu" or not is_exhaustion(error):
                raise
        self._room = 0  # another program has taken what was free
        return self._place(shape, dtype)

    def _tier(self, nbytes: int) -> str:
        """Where so much more is to lie."""
        used, on_cpu = self.used, self.device.type == "cpu"
        held = used["host"] + (used["device"] if on_cpu else 0)
        kept = self._kept is None or held + nbytes <= self._kept
        if self._fits(nbytes) and (kept or not on_cpu):
            return "device"
        return "host" if kept and (self._host is None or used["host"] + nbytes <= self._host) else "file"

    def _has_room(self, nbytes: int) -> bool:
        """Whether the disk has room, or raise CalibrationError where memory is no way out."""
        try:
            check_room(nbytes + sum(cache.unwritten for cache in self._caches))
        except CalibrationError as error:
            if self._kept is None:
                raise
            if not self._told:
                self._told = True
                logger.warning("block inputs and outputs stay in memory, beyond %s: %s", format_size(self._kept), error)
            return False
        return True
