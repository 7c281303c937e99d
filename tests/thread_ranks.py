"""Ranks that are threads of one process: what they compute is what processes would, without starting any."""

import dataclasses
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from pdq_export.ranks import ALONE, Ranks
from pdq_export.ranks.together import Together

Result = TypeVar("Result")
_SECONDS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreadRanks(Together):
    """Exchanges by way of a list that all threads see, of what went through bytes as between processes.

    Where threads are at collectives of several kinds, or with tensors of several sizes, each of them raises what gloo
    would at best.
    """

    board: list[Any]
    barrier: threading.Barrier

    def _post(self, kind: str, value: Any, seen_by: int | None = None) -> list[Any]:
        """What all have at a collective of this ``kind``; ``seen_by``: who gets it, by default all."""
        self._wait()
        self.board[self.rank] = kind, pickle.dumps(value)
        self._wait()
        found = list(self.board)
        self._wait()
        if any(other != kind for other, _ in found):
            raise RuntimeError(f"collectives of several kinds meet: {[other for other, _ in found]}")
        return [] if seen_by not in (None, self.rank) else [pickle.loads(sent) for _, sent in found]

    def _wait(self) -> None:
        try:
            self.barrier.wait(_SECONDS)
        except threading.BrokenBarrierError as error:
            raise RuntimeError("Connection closed by peer") from error

    def _all_gather(self, x: Tensor) -> Tensor:
        return torch.stack(self._post("all_gather", x))

    def _all_to_all(self, x: Tensor) -> Tensor:
        return torch.cat([parts.chunk(self.size)[self.rank] for parts in self._post("all_to_all", x)])

    def _objects(self, value: Any) -> list[Any]:
        return self._post("all_gather_object", value)

    def _objects_to_first(self, value: Any) -> list[Any]:
        return self._post("gather_object", value, seen_by=0)

    def _object_from_first(self, value: Any) -> Any:
        return self._post("broadcast_object", value if self.is_first else None)[0]


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
    for error in sorted(errors, key=_is_left_alone):
        raise error
    return [future.result() for future in futures]


def _is_left_alone(error: BaseException | None) -> bool:
    """Whether an error comes of another rank's."""
    while error is not None:
        if isinstance(error, threading.BrokenBarrierError):
            return True
        error = error.__cause__
    return False
