"""Bits that were found for every layer: what other sizes would lose, and what equal bits do."""

from collections.abc import Iterable, Iterator

from pdq_export.errors import percent
from pdq_export.report.bits import Estimate, SearchReport
from pdq_export.report.html.blocks import Block, Cell, Figure, Figures, Section, Table, Text, number
from pdq_export.report.html.plots import FLOAT, QUANTIZED, Plots
from pdq_export.report.html.source import Source
from pdq_export.report.report import Report
from pdq_export.report.tensor_losses import MEASURES
from pdq_export.spec.step import Step

_HEAD = ("bits", "bytes", "estimated loss", "average W", "average A")
_STEPS = ("bytes", "estimated loss", "average W", "points of top-1 lost", "± standard error", "images", "judged")


def bits(source: Source, plots: Plots) -> Section | None:
    """The frontier, and a table of what it consists of; the bits of layers are in their own table."""
    report = source.report
    if report is None or report.search is None:
        return None
    return Section(anchor="bits", title="Bits by budget", blocks=list(_blocks(report, report.search, plots)))


def _blocks(report: Report, found: SearchReport, plots: Plots) -> Iterator[Block]:
    loss = MEASURES.get(found.measure, found.measure)
    yield Text(text=f"Found for {found.budget}: the least sum of what single tensors are estimated to lose ({loss}).")
    if (ops := found.chosen.bit_ops) is not None:
        yield Text(text=f"Bit operations: × {ops:.3f} of those of 8/8.")
    if found.note:
        yield Text(text=found.note, tone="muted")
    figure = _figure(found, plots)
    if figure is not None:
        yield Figures(figures=[figure])
    if gaps := [one.gap for one in (found.chosen, *found.frontier) if one.gap]:
        yield Text(
            text=f"The solver stopped at a part of all allotments for {len(gaps)} of these sizes: there others could "
            f"lose up to {percent(max(gaps), 1)} less, or be smaller by as much, by the sum of estimates. Fewer bits "
            "to choose from (--allowed-bits) let it finish.",
            tone="muted",
        )
    rows = [_row("found", found.chosen), *(_row(f"{one.name} throughout", one) for one in found.uniforms)]
    yield Table(head=_HEAD, rows=rows, numeric=(1, 2, 3, 4))
    if found.steps:
        yield Text(
            text="Files that were calibrated on the way, and what they lose on images held back from calibration:"
        )
        yield Table(head=_STEPS, rows=[_step(one) for one in found.steps], numeric=(0, 1, 2, 3, 4, 5))
    measured = _measured(report)
    if measured:
        yield Text(text=f"Measured of the file, after calibration: {measured}.")


def _figure(found: SearchReport, plots: Plots) -> Figure | None:
    """None where nothing can be drawn on logarithmic scales."""
    frontier, uniforms, chosen = map(_points, (found.frontier, found.uniforms, [found.chosen]))
    if not (frontier or uniforms or chosen):
        return None
    svg = plots.trade_off(((QUANTIZED, ".-", frontier), (FLOAT, "s", uniforms), (QUANTIZED, "D", chosen)))
    told = f"{found.chosen.size:,} bytes lose {found.chosen.loss:.3g}"
    if (equal := found.equal) is not None:
        told += f"; equal bits {found.within} take {equal.size:,} and lose {equal.loss:.3g}"
    return Figure(
        svg=svg,
        label=f"Estimated loss against the size of the file: {told}",
        caption=f"Size of the file against estimated loss, both logarithmic: {told}.",
        legend=(("found (diamond), and at other sizes", "quantized"), ("equal bits (squares)", "float")),
    )


def _points(estimates: Iterable[Estimate]) -> list[tuple[float, float, str]]:
    return [
        (one.size, one.loss, one.name if "/" in one.name else "") for one in estimates if min(one.size, one.loss) > 0
    ]


def _row(name: str, one: Estimate) -> list[Cell]:
    averages = [number(value, "{:.2f}") for value in (one.avg_weight, one.avg_activation)]
    return [Cell(text=name), number(one.size, "{:,d}"), number(one.loss, "{:.3g}"), *averages]


def _step(one: Step) -> list[Cell]:
    return [
        number(one.size, "{:,d}"),
        number(one.loss, "{:.3g}"),
        number(one.avg_weight, "{:.2f}"),
        Cell(text=one.points, value=one.drop),
        number(one.error, "{:.2f}"),
        number(one.images, "{:,d}"),
        Cell(
            text="within what may be lost" if one.held else "not surely within it", tone="good" if one.held else "bad"
        ),
    ]


def _measured(report: Report) -> str:
    before, after = report.float_accuracy, report.quantized_accuracy or report.simulated_accuracy
    told = [f"{report.quantized.size:,} bytes"]
    if before is not None and after is not None:
        told.append(f"top-1 {100 * after.top1:.2f} % of {after.images:,} images, FP32 {100 * before.top1:.2f} %")
    return ", ".join(told)
