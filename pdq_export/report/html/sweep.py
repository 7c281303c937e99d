"""The page of a sweep: its runs in a table that sorts, and what each model's files take against what they give."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pdq_export.errors import percent
from pdq_export.report.html.blocks import Cell, Figure, Figures, Section, Table, Text, Tile
from pdq_export.report.html.plots import QUANTIZED, Plots, drawing
from pdq_export.report.html.render import page
from pdq_export.report.sweep import Finished, SweepTable

# What may be drawn against bytes, the first that every run of a model has: the figure, times what, its unit.
_DRAWN = (("top1", 100, "top-1, %"), ("agreement", 100, "classes as FP32's, %"), ("sqnr_db", 1, "SQNR, dB"))


def to_html(table: SweepTable) -> bytes:
    """The page of the runs that have ended, numbered in the order of the sweep."""
    with drawing() as plots:
        figures = list(_figures(table, plots))
    blocks = [Figures(figures=figures)] if figures else []
    sections = [Section(anchor="runs", title="Runs", blocks=[*blocks, _table(table)])]
    if table.failed:
        told = [Text(text=f"{run}: {run.error}", tone="bad") for run in table.failed]
        sections.append(Section(anchor="failed", title="Without a result", blocks=told))
    gates = [f"{run}: {gate}" for run in table.runs for gate in run.failed_gates]
    if gates:
        told = [Text(text=gate, tone="bad") for gate in gates]
        sections.append(Section(anchor="gates", title="Gates that failed", blocks=told))
    warned = [f"{run}: {text}" for run in table.runs for text in run.warnings]
    if warned:
        told = [Text(text=text) for text in warned]
        sections.append(Section(anchor="warnings", title="Warnings", blocks=told))
    models = dict.fromkeys(Path(run.model).name for run in table.runs)
    return page("Sweep", ", ".join(models), list(_tiles(table)), sections)


def _tiles(table: SweepTable) -> Iterator[Tile]:
    failed = len(table.failed)
    done = str(len(table.runs))
    if table.count is not None and table.count > len(table.runs):
        done += f" of {table.count}"
    yield Tile(name="runs", value=done, note=f"{failed} failed" if failed else "", tone="bad" if failed else "")
    best = max((run for run in table.runs if run.figures["top1"] is not None), key=_top1, default=None)
    if best is not None:
        yield Tile(name="best top-1", value=percent(_top1(best), 2), note=str(best))
    sizes = [run for run in table.runs if run.figures["size"] is not None]
    if sizes:
        least = min(sizes, key=lambda run: run.figures["size"])
        yield Tile(name="smallest", value=f"{least.figures['size']:,} bytes", note=str(least))


def _top1(run: Finished) -> float:
    return float(run.figures["top1"])


def _table(table: SweepTable) -> Table:
    head, rows = table.cells()
    names = table.shown
    first = 1 + len(table.columns)
    cells = [
        [Cell(text=str(number), value=number), *_row(run, row, names, first - 1)]
        for number, (run, row) in enumerate(zip(table.runs, rows, strict=True), 1)
    ]
    numeric = (0, *range(first, first + len(names)))
    return Table(head=["run", *head], rows=cells, numeric=numeric, searched="Filter runs")


def _row(run: Finished, row: Sequence[str], names: Sequence[str], first: int) -> Iterator[Cell]:
    for place, text in enumerate(row):
        figure = place - first
        yield Cell(text=text, value=run.figures[names[figure]] if 0 <= figure < len(names) else None)


def _figures(table: SweepTable, plots: Plots) -> Iterator[Figure]:
    numbered = list(enumerate(table.runs, 1))
    for model in dict.fromkeys(run.model for run in table.runs):
        found = [(number, run.figures) for number, run in numbered if run.model == model and run.figures["size"]]
        measured = next((drawn for drawn in _DRAWN if all(run[drawn[0]] is not None for _, run in found)), None)
        if not found or measured is None:
            continue
        name, times, unit = measured
        points = [(run["size"], times * run[name], str(number)) for number, run in found]
        caption = f"{Path(model).name}: {unit} against the size of the file; numbers are those of runs in the table."
        svg = plots.trade_off([(QUANTIZED, "o", points)], unit, log=False)
        yield Figure(svg=svg, label=caption, caption=caption)
