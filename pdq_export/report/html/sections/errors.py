"""Where the error arises: signal-to-noise ratios of each layer, its own and handed on."""

from collections.abc import Iterable

from pdq_export.errors import counted
from pdq_export.report.html.blocks import Block, Cell, Command, Figure, Figures, Section, Table, Text, number
from pdq_export.report.html.plots import BAD, FLOAT, QUANTIZED, Plots
from pdq_export.report.html.source import Source
from pdq_export.report.layers import LayerReport, LayerRow

_HEAD = (
    *("layer", "operator", "at output, dB", "own, dB", "handed on, dB", "both, dB", "cosine", "range"),
    *("quantizer's range", "clipped, %", "levels used", "W bits", "what would help", "costs bytes"),
)
_NUMERIC = (2, 3, 4, 5, 6, 9, 10, 11, 13)
_LINES = 10
_MOST_DB = 60  # that are drawn: above it is float rounding
_TOLD = (
    "Signal-to-noise ratios, in dB: the fewer, the worse. Own: of the layer with FP32's input; handed on: of what it "
    "makes of the error of its input; both: in the quantized network; at output: of the network's output where nothing "
    "but this layer has its own error, which is what the table is sorted by."
)


def errors(source: Source, plots: Plots) -> Section | None:
    """A figure, the table of `pdq-export compare`, and the options that would help."""
    found = source.errors
    if found is None:
        if source.report is None:
            return None
        text = (
            "Layers were not compared in this run: quantize and validate do it for --report OUT.html, and so does "
            "pdq-export compare."
        )
        return Section(anchor="errors", title="Where the error arises", blocks=[Text(text=text, tone="muted")])
    blocks: list[Block] = [Text(text=f"On {counted(found.images, 'image')}. {_TOLD}", tone="muted")]
    if found.tensors:
        blocks.append(Figures(figures=[_figure(found, plots)]))
    rows = [_row(row) for row in found.tensors]
    blocks.append(Table(head=_HEAD, rows=rows, numeric=_NUMERIC, searched="Filter layers"))
    remedies = (source.report and source.report.remedies) or found.remedies
    if remedies:
        blocks.append(Text(text="What to try next, what helps most for its cost first (options of quantize):"))
        lines = [f"{remedy.line}  # {remedy.told}" for remedy in remedies[:_LINES]]
        blocks.append(Command(text="\n".join(lines)))
    if found.left_out:
        left = ", ".join(found.left_out[:20]) + (", …" if len(found.left_out) > 20 else "")
        blocks.append(Text(text=f"Left out, since their shapes differ: {left}.", tone="muted"))
    return Section(anchor="errors", title="Where the error arises", blocks=blocks)


def _figure(found: LayerReport, plots: Plots) -> Figure:
    rows = found.tensors
    series = (
        ("handed on", FLOAT, _drawn(row.handed_on_db for row in rows)),
        ("own", QUANTIZED, _drawn(row.own_db for row in rows)),
        ("at output", BAD, _drawn(row.output_db for row in rows)),
    )
    return Figure(
        svg=plots.marks(series, "dB"),
        label="Signal-to-noise ratios of layers: own, handed on and at the output; the table below has the numbers",
        caption=f"The worst layer first, as in the table; up to {_MOST_DB} dB.",
        legend=(("own (squares)", "quantized"), ("handed on (circles)", "float"), ("at output (diamonds)", "bad")),
    )


def _drawn(ratios: Iterable[float | None]) -> list[float | None]:
    return [None if ratio is None or ratio > _MOST_DB else ratio for ratio in ratios]


def _row(row: LayerRow) -> list[Cell]:
    return [
        Cell(text=", ".join(row.layers) or row.node),
        Cell(text=row.op_type),
        *(number(value) for value in (row.output_db, row.own_db, row.handed_on_db, row.sqnr_db)),
        number(row.cosine, "{:.4f}"),
        Cell(text=_range(row.range), tone="nowrap"),
        Cell(text="" if row.quantizer_range is None else _range(row.quantizer_range), tone="nowrap"),
        number(None if row.clipped is None else 100 * row.clipped, "{:.2f}"),
        Cell(text="" if row.levels is None else f"{row.levels_used} of {row.levels}", value=row.levels_used),
        number(row.weight_bits, "{:d}"),
        Cell(text="" if row.remedy is None else row.remedy.line, tone="command"),
        number(None if row.remedy is None else row.remedy.bytes, "{:+,d}"),
    ]


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}"
