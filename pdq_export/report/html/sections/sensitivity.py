"""What quantizing each tensor alone does at every width: a heat map, with the bits that it has."""

import math
from collections.abc import Iterator

from pdq_export.errors import first_few
from pdq_export.report.html.blocks import Block, Cell, Section, Table, Text
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source
from pdq_export.report.tensor_losses import MEASURES, SensitivityRow, TensorLosses

_DECADES = 5  # of losses below the largest that have a colour of their own
_HOTTEST = 9


def sensitivity(source: Source, plots: Plots) -> Section | None:
    """The worst tensors first."""
    found = source.tensors
    if found is None or not found.groups:
        return None
    return Section(anchor="sensitivity", title="What bits of single tensors do", blocks=list(_blocks(found)))


def _blocks(found: TensorLosses) -> Iterator[Block]:
    how = "estimated to second order" if found.estimate == "fisher" else "measured"
    yield Text(
        text=f"{MEASURES.get(found.measure, found.measure)}, where one tensor alone has so many bits and all else is "
        f"FP32; {how} on {found.images:,} images. The warmer the colour the worse, by powers of ten. Bits: those that "
        "the tensor has."
    )
    hottest = max(value for row in found.groups for value in (*row.prediction, 0.0))
    head = ("tensor", "layer", "kind", "bits", *(f"at {width} bits" for width in found.widths))
    rows = [_row(row, hottest) for row in found.groups]
    yield Table(head=head, rows=rows, numeric=range(3, len(head)), searched="Filter tensors")


def _row(row: SensitivityRow, hottest: float) -> list[Cell]:
    return [
        Cell(text=", ".join(row.tensors)),
        Cell(text=first_few(list(row.layers)) if row.layers else ""),
        Cell(text=row.role),
        Cell(text=str(row.planned_bits), value=row.planned_bits, bits=row.planned_bits),
        *(Cell(text=f"{value:.2g}", value=value, heat=_heat(value, hottest)) for value in row.prediction),
    ]


def _heat(value: float, hottest: float) -> int:
    """From 0, nothing, to 9, as much as the hottest, by powers of ten."""
    if value <= 0:
        return 0
    return max(0, round(_HOTTEST * (1 + math.log10(value / hottest) / _DECADES)))
