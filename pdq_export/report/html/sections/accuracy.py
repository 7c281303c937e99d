"""Accuracy with its error bars, and all that was measured beside FP32."""

from collections.abc import Iterator

from pdq_export.gates.statistics import mcnemar, share_bounds
from pdq_export.report.html.blocks import Block, Cell, Figure, Figures, Section, Table, Text, cells
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source
from pdq_export.report.report import Report
from pdq_export.report.table import report_rows
from pdq_export.validate import Accuracy

_NOTICED = 0.05


def accuracy(source: Source, plots: Plots) -> Section | None:
    """A figure where there are labels, and the table of the command."""
    if source.report is None:
        return None
    blocks = list(_blocks(source.report, plots))
    return Section(anchor="accuracy", title="Accuracy and agreement", blocks=blocks)


def _blocks(report: Report, plots: Plots) -> Iterator[Block]:
    figures = list(_figures(report, plots))
    if figures:
        yield Figures(figures=figures)
        yield from _difference(report)
    else:
        yield Text(text="No labels: only the agreement with FP32 was measured.", tone="muted")
    yield Table(head=("what", "FP32", "quantized", "difference"), rows=_rows(report))
    if report.uncompared:
        yield Text(text="Outputs that could not be compared:")
        rows = [cells(name, reason) for name, reason in report.uncompared.items()]
        yield Table(head=("output", "reason"), rows=rows)


def _rows(report: Report) -> list[list[Cell]]:
    return [[Cell(text=name), *(Cell(text=text, tone="nowrap") for text in row)] for name, *row in report_rows(report)]


def _figures(report: Report, plots: Plots) -> Iterator[Figure]:
    measured = [("FP32", report.float_accuracy), ("quantized", report.quantized_accuracy)]
    simulated = report.simulated_accuracy
    if simulated is not None and (report.quantized_accuracy is None or report.saturated_layers):
        measured.append(("simulated", simulated))
    shown = [(name, found) for name, found in measured if found is not None]
    if len(shown) < 2:
        return
    rows = [_row(name, found.top1, found) for name, found in shown]
    caption = "Bars: 95 % bounds (Clopper and Pearson) of each share by itself."
    if shown[-1][1].images != report.images:
        caption += f" The simulation saw {shown[-1][1].images:,} of the images."
    yield Figure(svg=plots.intervals(rows, "top-1, %"), label=_told("top-1", rows), caption=caption)
    fives = [(name, found, found.top5) for name, found in shown if found.top5 is not None]
    if len(fives) >= 2:
        rows = [_row(name, share, found) for name, found, share in fives]
        yield Figure(svg=plots.intervals(rows, "top-5, %"), label=_told("top-5", rows), caption="The same of top-5.")


def _row(name: str, share: float, found: Accuracy) -> tuple[str, float, float, float]:
    low, high = share_bounds(share, found.images)
    return name, 100 * share, 100 * low, 100 * high


def _told(what: str, rows: list[tuple[str, float, float, float]]) -> str:
    return f"{what}: " + "; ".join(f"{name} {value:.2f} %, {low:.2f} to {high:.2f}" for name, value, low, high in rows)


def _difference(report: Report) -> Iterator[Text]:
    changes = report.top1_changes
    if changes is None or not changes.images:
        return
    p_value = mcnemar(changes)
    chance = "which can be chance" if p_value >= _NOTICED else "which is hardly chance"
    yield Text(
        text=f"Of {changes.images:,} images {changes.lost:,} are right in FP32 alone and {changes.gained:,} in the "
        f"quantized model alone: {0 - changes.drop:+.2f} ± {changes.error:.2f} points (standard error), {chance} "
        f"(McNemar's test: p = {p_value:.2g})."
    )
