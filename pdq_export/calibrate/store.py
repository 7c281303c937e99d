"""Where the block inputs and outputs of the calibration images lie: on the device, in host memory or in a file."""

import itertools
import logging
import math
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.memory import SCRATCH, device_budget, enough, format_size, process_budget, trim_heap
from pdq_export.calibrate.offload import Offload
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.calibrate.spill import check_room
from pdq_export.calibrate.tiers import CPU, Borrowed, File, Grid, Memory, OneZero, Source
from pdq_export.errors import CalibrationError, OptionError
from pdq_export.exhaustion import is_exhaustion

logger = logging.getLogger(__name__)

_COPIED = 64  # rows of a source at a time
# Bytes of caches in host memory where nobody says how much the process may take: they grow with the images. What was
# written to a file is read from the system's page cache, as long as nobody else needs that memory.
_KEPT = 512 * 2**20


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
        codec = None if quantizer is None else OneZero() if self._can_waste(shape, dtype) else Grid(quantizer)
        stored = torch.uint8 if isinstance(codec, Grid) else dtype
        cache = Cache(self.device, self._place(tuple(shape), stored), shape, dtype, codec)
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
        cache = Cache(self.device, Memory(x, tier, owned=copied), x.shape, x.dtype, count=len(x))
        self._register(cache)
        return cache

    def quantized(self, x: Cache, quantizer: ActivationQuantizer) -> Cache | None:
        """What ``quantizer`` makes of rows that are made as they are needed, likewise; None where ``x`` has others."""
        if not isinstance(x.data, Borrowed):
            return None
        cache = Cache(self.device, x.data.through(quantizer), x.shape, x.dtype, count=len(x))
        self._register(cache)
        return cache

    def _adopt_source(self, source: Source) -> Cache:
        if self.device.type != "cpu" and self._fits(math.prod(source.shape) * source.dtype.itemsize):
            copied = self.new(source.shape, source.dtype)
            for start in range(0, len(source), _COPIED):
                copied.append(source[start : start + _COPIED].to(self.device))
            return copied
        cache = Cache(self.device, Borrowed(source), source.shape, source.dtype, count=len(source))
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
            if self._fits(0) or not isinstance(cache.data, Memory) or not cache.nbytes:
                break
            self._move(cache, cache.data)
        trim_heap()

    def evict(self) -> bool:
        """Move every cache off a device whose memory has run out, and keep all others off it; whether that frees any.

        A CPU's memory is what `reserve` minds.
        """
        if self.device.type == "cpu":
            return False
        inside = [c for c in self._caches if c.tier == "device" and c.nbytes and isinstance(c.data, Memory)]
        self._room = 0
        for cache in inside:
            assert isinstance(cache.data, Memory)
            self._move(cache, cache.data)
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

    def _move(self, cache: Cache, data: Memory) -> None:
        """Out of ``data``, to where there is room."""
        cache.move(self._place(tuple(data.data.shape), data.data.dtype))

    def _place(self, shape: tuple[int, ...], dtype: torch.dtype) -> Memory | File:
        nbytes = math.prod(shape) * dtype.itemsize
        tier = self._tier(nbytes)
        if tier == "file" and self._has_room(nbytes):
            return File(shape, dtype)
        on_device = tier == "device" or (tier == "file" and self._fits(nbytes))
        try:
            device = self.device if on_device else CPU
            return Memory(torch.empty(shape, dtype=dtype, device=device), "device" if on_device else "host")
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
