"""Ranks that are threads of one process: what they compute is what processes would, without starting any."""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from pdq_export.ranks import ALONE, Ranks, Together

Result = TypeVar("Result")
_SECONDS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreadRanks(Together):
    """Exchanges by way of a list that all threads see."""

    board: list[Any]
    barrier: threading.Barrier

    def _objects(self, value: Any) -> list[Any]:
        self.barrier.wait(_SECONDS)
        self.board[self.rank] = value
        self.barrier.wait(_SECONDS)
        found = list(self.board)
        self.barrier.wait(_SECONDS)
        return found

    def _all_gather(self, x: Tensor) -> Tensor:
        return torch.stack(self._objects(x))

    def _all_to_all(self, x: Tensor) -> Tensor:
        return torch.cat([parts.chunk(self.size)[self.rank] for parts in self._objects(x)])

    def to_first(self, value: Any) -> list[Any]:
        found = self._objects(value)
        return found if self.is_first else []

    def from_first(self, value: Any) -> Any:
        return self._objects(value)[0]


def on_ranks(size: int, compute: Callable[[Ranks], Result]) -> list[Result]:
    """What ``compute`` gives on each of so many ranks; the error of the first that raises one."""
    if size == 1:
        return [compute(ALONE)]
    board, barrier = [None] * size, threading.Barrier(size)

    def run(rank: int) -> Result:
        try:
            return compute(ThreadRanks(rank=rank, size=size, local_rank=rank, board=board, barrier=barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda e: isinstance(e.__cause__, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
