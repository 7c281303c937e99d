"""Bits and bytes of each layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pdq_export.report.html.blocks import Block, Cell, Figure, Figures, Section, Table, Text, number
from pdq_export.report.html.plots import FLOAT, QUANTIZED, Plots
from pdq_export.report.html.source import Source
from pdq_export.validate.histograms import WeightHistogram

_FLOAT_BYTES = 4
_HEAD = ("layer", "operator", "weight", "W bits", "input bits", "A bits", "FP32 bytes")
_BY_BITS = (
    "Bytes by bits are the elements of a weight times its bits: how the file packs them, and its scales, are not "
    "counted. In reports of quantize they are those of the file."
)


def layers(source: Source, plots: Plots) -> Section | None:
    """In the order of the graph; of a file of whoever made it, those whose weights were found."""
    planned = [_planned(layer) for layer in (source.report.layers if source.report is not None else ())]
    rows = planned or [_found(weight) for weight in source.weights]
    head = (*_HEAD, "bytes" if planned else "bytes, by bits")
    if not rows:
        return None
    before, after = ([row[column].value for row in rows] for column in (6, 7))
    svg = plots.marks((("FP32", FLOAT, _logs(before)), ("quantized", QUANTIZED, _logs(after))), "bytes", log=True)
    total = [sum(value for value in values if value is not None) for values in (before, after)]
    caption = (
        f"Bytes of each layer's weight, on a logarithmic scale; {total[0]:,.0f} in FP32, {total[1]:,.0f} quantized."
    )
    figure = Figure(svg=svg, label=caption, caption=caption, legend=(("FP32", "float"), ("quantized", "quantized")))
    table = Table(head=head, rows=rows, numeric=(3, 4, 5, 6, 7), searched="Filter layers")
    blocks: list[Block] = [Figures(figures=[figure]), table]
    if not planned:
        blocks.append(Text(text=_BY_BITS, tone="muted"))
    return Section(anchor="layers", title="Bits and bytes of layers", blocks=blocks)


def _planned(layer: Mapping[str, Any]) -> list[Cell]:
    shape = layer.get("weight_shape")
    sizes = [size for size in shape if isinstance(size, int)] if isinstance(shape, Sequence) else []
    elements = math.prod(sizes) if sizes else None
    scope = layer.get("scope")
    return [
        Cell(text=f"{layer.get('node', '')}{f' ({scope})' if scope else ''}"),
        Cell(text=str(layer.get("op_type", ""))),
        Cell(text=" × ".join(map(str, sizes))),
        *(_bits(layer.get(name)) for name in ("weight_bits", "input_bits", "activation_bits")),
        number(None if elements is None else elements * _FLOAT_BYTES, "{:,.0f}"),
        number(_whole(layer.get("weight_bytes")), "{:,.0f}"),
    ]


def _found(weight: WeightHistogram) -> list[Cell]:
    nothing = Cell(text="")
    shape = Cell(text=f"{weight.elements:,} numbers")
    size = number(weight.elements * weight.bits / 8, "{:,.0f}")
    return [
        Cell(text=weight.layer),
        nothing,
        shape,
        _bits(weight.bits),
        nothing,
        nothing,
        number(weight.elements * _FLOAT_BYTES, "{:,.0f}"),
        size,
    ]


def _bits(bits: Any) -> Cell:
    known = isinstance(bits, int) and 1 <= bits <= 8
    return Cell(text=str(bits) if known else "float", value=bits if known else 32, bits=max(bits, 2) if known else 32)


def _whole(value: Any) -> float | None:
    return float(value) if isinstance(value, int) and 0 <= value < 2**63 else None


def _logs(values: Sequence[float | None]) -> list[float | None]:
    return [value if value else None for value in values]
