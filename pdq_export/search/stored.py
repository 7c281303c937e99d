"""Sensitivities as text, for the disk."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Interval

from pdq_export.spec import Bits, Size
from pdq_export.spec.plain import from_text, to_text
from pdq_export.spec.sensitivity import Group, Sensitivity

_LONGEST = 1 << 28  # characters
Loss = Annotated[float, Interval(ge=0)]
Rows = tuple[tuple[Loss, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair:
    first: str
    second: str
    together: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """A `Sensitivity` whose tables are rows beside ``groups`` and ``widths``."""

    version: Literal[1] = 1
    groups: tuple[Group, ...]
    widths: tuple[Bits, ...]
    measure: Literal["kl", "mse", "kl and mse"]
    images: Size
    estimate: Literal["fisher", "measured"]
    prediction: Rows
    block: Rows
    pairs: tuple[_Pair, ...] = ()

    def __post_init__(self) -> None:
        rows = (*self.prediction, *self.block)
        whole = len(self.prediction) == len(self.block) == len(self.groups)
        if not whole or any(len(row) != len(self.widths) for row in rows):
            raise ValueError("expected a loss for every group and width")
        names, count = {group.name for group in self.groups}, len(self.widths)
        for pair in self.pairs:
            if {pair.first, pair.second} - names or [len(row) for row in pair.together] != [count] * count:
                raise ValueError("expected pairs of groups, with a number for any two widths")


def write_sensitivity(found: Sensitivity) -> str:
    """One line of text that `read_sensitivity` reads. Raises ValueError for losses that are not finite."""
    widths = tuple(sorted(next(iter(found.prediction.values()), ())))
    prediction, block = (
        tuple(tuple(table[group.name][width] for width in widths) for group in found.groups)
        for table in (found.prediction, found.block)
    )
    pairs = tuple(
        _Pair(first=a, second=b, together=tuple(tuple(together[v, w] for w in widths) for v in widths))
        for (a, b), together in found.pairs.items()
    )
    return to_text(
        _Stored(
            groups=found.groups,
            widths=widths,
            measure=found.measure,
            images=found.images,
            estimate=found.estimate,
            prediction=prediction,
            block=block,
            pairs=pairs,
        )
    )


def read_sensitivity(text: str) -> Sensitivity:
    """What `write_sensitivity` has written. Raises ValueError for anything else."""
    stored = from_text(_Stored, text, longest=_LONGEST, what="the sensitivity")
    widths = stored.widths
    prediction, block = (
        {group.name: dict(zip(widths, row, strict=True)) for group, row in zip(stored.groups, rows, strict=True)}
        for rows in (stored.prediction, stored.block)
    )
    return Sensitivity(
        groups=stored.groups,
        measure=stored.measure,
        images=stored.images,
        estimate=stored.estimate,
        prediction=prediction,
        block=block,
        pairs={
            (pair.first, pair.second): {
                (v, w): pair.together[m][n] for m, v in enumerate(widths) for n, w in enumerate(widths)
            }
            for pair in stored.pairs
        },
    )
