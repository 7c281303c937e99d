"""One of several processes that calibrate together: exchanges by torch.distributed, added up in the order of ranks."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pdq_export.errors import RESUME, RankError, first_few
from pdq_export.exhaustion import is_exhaustion
from pdq_export.ranks.alone import Ranks

Value = TypeVar("Value")

# Below so many bytes from all ranks each of them gets everything and adds it up itself: one exchange in place of two.
_SMALL = 2**20
_KINDS = ("gather", "to_first", "from_first")
# What gloo and NCCL say, in lower case, where the other end has gone.
_GONE = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "remote process")
_CAUSE = 120  # characters of it


@dataclasses.dataclass(kw_only=True)
class Traffic:
    """What a process has sent to others, and waited for them: exchanges, bytes and seconds."""

    exchanges: int = 0
    sent: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together(Ranks):
    """One of several processes, which torch.distributed connects.

    Where they are not at the same exchange of values, every rank raises RankError.
    """

    rank: int = dataclasses.field()
    size: int = dataclasses.field()
    local_rank: int | None = dataclasses.field(default=None)
    traffic: Traffic = dataclasses.field(default_factory=Traffic)

    def sum_over(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sums of tensors over all ranks, each of one shape and type everywhere."""
        return tuple(self._sum(x.reshape(-1)).view(x.shape) for x in values)

    def average(self, values: Sequence[Tensor | None], weight: float) -> Sequence[Tensor | None]:
        """The weighted sums of float32 tensors over all ranks, in one exchange."""
        known = [x for x in values if x is not None]
        sums = self._sum(torch.cat([x.reshape(-1) for x in known]).mul_(weight)).split([x.numel() for x in known])
        found = iter(part.view(x.shape) for part, x in zip(sums, known, strict=True))
        return [None if x is None else next(found) for x in values]

    def rows(self, x: Tensor) -> Tensor:
        """The rows [n, ...] of all ranks, one rank's behind the other's."""
        counts = self.gather(len(x))
        row = math.prod(x.shape[1:]) * x.itemsize
        sent = torch.zeros(max(counts) * row, dtype=torch.uint8, device=x.device)  # NCCL does not know every type
        sent[: x.nbytes] = x.contiguous().view(-1).view(torch.uint8)
        with self._exchange(sent.nbytes * (self.size - 1)):
            found = self._all_gather(sent)
        parts = [part[: count * row] for part, count in zip(found, counts, strict=True)]
        return torch.cat(parts).view(x.dtype).view(-1, *x.shape[1:])

    def gather(self, value: Value) -> list[Value]:
        """What each rank has, on every rank."""
        with self._exchange(0):
            self._agree("gather")
            return self._objects(value)

    def to_first(self, value: Value) -> list[Value]:
        """What each rank has, on the first; nothing on the others."""
        with self._exchange(0):
            self._agree("to_first")
            return self._objects_to_first(value)

    def from_first(self, value: Value) -> Value:
        """What the first has, on every rank."""
        with self._exchange(0):
            self._agree("from_first")
            return self._object_from_first(value)

    def _agree(self, kind: str) -> None:
        """Raise RankError where another rank is at another exchange of values than this one, or at another kind."""
        places = self._all_gather(torch.tensor([_KINDS.index(kind), self.traffic.exchanges])).tolist()
        others = [rank for rank, place in enumerate(places) if place != places[0]]
        if others:
            told = [f"rank {n} at number {places[n][1]} ({_KINDS[places[n][0]]})" for n in (0, *others)]
            raise RankError(
                f"rank {self.rank} of {self.size}: the ranks are not at the same exchange: {first_few(told)}; expected "
                "all of them to take the same way; give all of them the same model, options, images and versions"
            )

    def _sum(self, flat: Tensor) -> Tensor:
        """The sum [n] of ``flat`` [n] over all ranks, each element added up in their order.

        By hand: which order `all_reduce` takes depends on sizes, links and versions. A large tensor is cut into a part
        for each rank, which gets and adds up that part of all: as many bytes as a ring takes.
        """
        count, nbytes = flat.numel(), flat.nbytes
        if self.size == 2 or self.size * nbytes <= _SMALL:
            with self._exchange(nbytes * (self.size - 1)):
                return _added(self._all_gather(flat))
        part = math.ceil(count / self.size)
        padded = torch.nn.functional.pad(flat, (0, part * self.size - count))
        nbytes = part * flat.itemsize * (self.size - 1)
        with self._exchange(nbytes):
            own = _added(self._all_to_all(padded).view(self.size, part))
        with self._exchange(nbytes):
            return self._all_gather(own).view(-1)[:count]

    def _all_gather(self, x: Tensor) -> Tensor:
        """What each rank has [n], [ranks, n]."""
        found = x.new_empty(self.size, len(x))
        dist.all_gather(list(found.unbind()), x)
        return found

    def _all_to_all(self, x: Tensor) -> Tensor:
        """Of ``x``, a part [n] for each rank, what all ranks have for this one, [ranks n]."""
        found = torch.empty_like(x)
        dist.all_to_all_single(found, x)
        return found

    def _objects(self, value: Value) -> list[Value]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def _objects_to_first(self, value: Value) -> list[Value]:
        found: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, found)
        return found or []

    def _object_from_first(self, value: Value) -> Value:
        held = [value]
        dist.broadcast_object_list(held)
        return held[0]

    @contextlib.contextmanager
    def _exchange(self, sent: int) -> Iterator[None]:
        """Count what is sent, and tell what fails, others that have ended above all."""
        began = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            if is_exhaustion(error):
                raise
            raise _failed(self, error) from error
        finally:
            self.traffic.seconds += time.perf_counter() - began
            self.traffic.exchanges += 1
            self.traffic.sent += sent


def _added(parts: Tensor) -> Tensor:
    """The sum of ``parts`` [ranks, n], one after the other."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _failed(ranks: Ranks, error: RuntimeError) -> RankError:
    """The error of a rank that other ranks have left alone, or whose exchange with them fails."""
    where, cause = f"rank {ranks.rank} of {ranks.size}", shortened(error)
    if any(words in str(error).lower() for words in _GONE):
        return RankError(
            f"{where}: another rank has ended, or cannot be reached any more ({cause}); expected all of them until the "
            f"end; {RESUME}"
        )
    return RankError(
        f"{where}: an exchange with the others fails ({type(error).__name__}: {cause}); expected one device for each, "
        "of one kind, and the same versions everywhere; see torchrun's --nproc-per-node, or take --device cpu"
    )


def shortened(error: Exception) -> str:
    """The beginning of what an error says, in one line."""
    return " ".join(str(error).split())[:_CAUSE]
