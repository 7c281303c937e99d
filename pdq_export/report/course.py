"""How a block was calibrated, as reports tell it."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Self

_POINTS = 64  # of a curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCourse:
    """``losses``: the reconstruction error, as means over equal parts of so many ``steps``; empty without learning.

    ``seconds``: of wall time by phase.
    """

    block: str
    steps: int
    losses: tuple[float, ...]
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, block: str, losses: Sequence[float], seconds: Mapping[str, float]) -> Self:
        """``losses``: of every step; what is not finite is left out."""
        count = min(len(losses), _POINTS)
        bounds = [position * len(losses) // max(count, 1) for position in range(count + 1)]
        parts = [[float(loss) for loss in losses[a:b]] for a, b in itertools.pairwise(bounds)]
        means = [math.fsum(part) / len(part) for part in parts]
        return cls(
            block=block,
            steps=len(losses),
            losses=tuple(mean for mean in means if math.isfinite(mean)),
            seconds={phase: round(float(time), 3) for phase, time in seconds.items()},
        )
