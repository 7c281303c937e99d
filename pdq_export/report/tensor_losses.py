"""What quantizing each tensor alone does at every width, as rows for people and programs."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Interval

from pdq_export.spec import Bits
from pdq_export.spec.sensitivity import Sensitivity

Loss = Annotated[float, Interval(ge=0)]

MEASURES: Mapping[str, str] = {
    "kl": "KL divergence of the predictions, in nats",
    "mse": "squared error of the outputs over their mean square",
    "kl and mse": "KL divergence, in nats, and squared error over the mean square, summed over outputs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """A group of tensors; ``prediction`` and ``block_error``: by width, as `TensorLosses` has them in order."""

    tensors: tuple[str, ...]
    role: str
    layers: tuple[str, ...]
    block: str
    planned_bits: Bits
    prediction: tuple[Loss, ...]
    block_error: tuple[Loss, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorLosses:
    """``groups``: the worst first, by the prediction at the fewest bits; the rest is as `Sensitivity` has it.

    Raises ValueError where a group has not one loss for each of the ``widths``.
    """

    measure: str
    estimate: Literal["fisher", "measured"]
    images: int
    widths: tuple[Bits, ...]
    groups: tuple[SensitivityRow, ...]

    def __post_init__(self) -> None:
        count = len(self.widths)
        if any(len(row.prediction) != count or len(row.block_error) != count for row in self.groups):
            raise ValueError("groups: expected one prediction and one block_error for each of the widths")

    @classmethod
    def of(cls, found: Sensitivity, bits: Mapping[str, Bits]) -> "TensorLosses":
        """``bits``: that groups have, by tensor."""
        widths = tuple(sorted(next(iter(found.prediction.values()), ())))
        rows = [
            SensitivityRow(
                tensors=group.tensors,
                role=group.role.value,
                layers=group.layers,
                block=group.block,
                planned_bits=bits[group.name],
                prediction=tuple(found.prediction[group.name][width] for width in widths),
                block_error=tuple(found.block[group.name][width] for width in widths),
            )
            for group in found.groups
        ]
        return cls(
            measure=found.measure,
            estimate=found.estimate,
            images=found.images,
            widths=widths,
            groups=tuple(sorted(rows, key=lambda row: row.prediction, reverse=True)),
        )
