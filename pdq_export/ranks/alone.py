"""What processes that calibrate together exchange, as each of them sees it, and a process that is alone.

Sums are taken in the order of ranks, wherever they are taken: all ranks have the same bits, and the same number of
ranks has them again.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from torch import Tensor

from pdq_export.errors import RankError

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """A process among ``size`` that work together, number ``rank`` from 0. This one is alone, which costs nothing.

    ``local_rank``: its number among those of its machine; None where it is alone. Others are `together.Together`.
    """

    rank: int = dataclasses.field(default=0, init=False)
    size: int = dataclasses.field(default=1, init=False)
    local_rank: int | None = dataclasses.field(default=None, init=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def share_of(self, count: int) -> int:
        """How many of ``count`` things this process has; the first ranks have one more where that leaves a rest."""
        return count // self.size + (self.rank < count % self.size)

    def mine(self, count: int) -> range:
        """Which of ``count`` things these are: every so many-th, as a set may be sorted by class."""
        return range(self.rank, count, self.size)

    def sum_over(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sums of tensors over all ranks, each of one shape and type everywhere."""
        return values

    def average(self, values: Sequence[Tensor | None], weight: float) -> Sequence[Tensor | None]:
        """The weighted sums of float32 tensors over all ranks, whose weights add up to 1.

        What is None is None everywhere.
        """
        return values

    def rows(self, x: Tensor) -> Tensor:
        """The rows [n, ...] of all ranks, one rank's behind the other's."""
        return x

    def gather(self, value: Value) -> list[Value]:
        """What each rank has, on every rank; plain values and small arrays."""
        return [value]

    def to_first(self, value: Value) -> list[Value]:
        """What each rank has, on the first; nothing on the others."""
        return [value]

    def from_first(self, value: Value) -> Value:
        """What the first has, on every rank."""
        return value

    def done_by_first(self, compute: Callable[[], Value]) -> Value:
        """What ``compute`` gives on the first, which alone does it, on every rank."""
        return self.from_first(compute() if self.is_first else cast(Value, None))

    def check_same(self, what: str, content: str, remedy: str) -> None:
        """Raise RankError, on every rank, where the ``content`` of ``what`` is not that of the first rank."""
        digests = self.gather(hashlib.sha256(content.encode()).hexdigest())
        others = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise RankError(
                f"{what}: rank {', '.join(others)} of {self.size} has something else than rank 0; expected the same on "
                f"every rank; {remedy}"
            )


ALONE = Ranks()
