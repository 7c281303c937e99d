"""``pdq-export sweep``: many runs of quantize, as a file asks for them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdq_export.errors import printable
from pdq_export.process import find_modules_here, tune_process

from .command import Frame, Outcome, command
from .log import NOTES
from .paths import ConfigPath

if TYPE_CHECKING:
    from pdq_export.report.sweep import Finished, SweepTable


@command(
    summary="Quantize models in many ways, and show the results in one table.",
    example="pdq-export sweep bits.toml --folder results --ray local",
    json_schema="pdq_export.report.sweep",
)
@click.argument("sweep", type=ConfigPath(path_type=Path), metavar="SWEEP.toml")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep what comes of each run in DIR.  [default: ./SWEEP-results]",
)
@click.option(
    "--ray",
    metavar="ADDRESS|local",
    help="Make the runs beside each other, on a cluster of Ray or on one that is started on this machine.",
)
@click.option(
    "--cores", type=click.INT, default=1, metavar="N", show_default=True, help="CPU cores of each run, with --ray."
)
def sweep(frame: Frame, *, sweep: Path, folder: Path | None, ray: str | None, cores: int) -> Outcome:
    """Make every run that a file asks for: models, and options that change, each combination once.

    The file is a configuration, as for quantize --config, with a section [sweep]: models = ["a.onnx", "b.onnx"], and
    lists of values by the name of an option, as bits = ["8/8", "4/4"], method = ["nearest", "pdq"], seed = [0, 1];
    under [sweep.changes.NAME] options that change together. Paths are relative to the current folder. What comes of a
    run is kept at once, with the table as results.csv, .md and .html: the same command again makes what is missing.
    """
    find_modules_here()
    folder = folder or Path(f"{sweep.stem}-results")
    tune_process()
    with frame.progress() as progress, frame.work():
        from pdq_export.commands.sweep import run_sweep

        table = run_sweep(sweep, folder, ray=ray, cores=cores, told=_tell, progress=progress)
    gates = [f"{run}: {gate}" for run in table.runs for gate in run.failed_gates]
    failed = [f"{run}: {run.error}" for run in table.failed]
    return Outcome(text=_lines(table, folder, gates), to_json=table.to_json, failed_gates=gates, errors=failed)


def _tell(run: "Finished", done: int, total: int) -> None:
    top1, error = run.figures["top1"], run.error
    found = f"failed: {error}" if error else "done" if top1 is None else f"top-1 {100 * top1:.2f} %"
    NOTES.info("%d of %d: %s: %s", done, total, run, found)


def _lines(table: "SweepTable", folder: Path, gates: Iterable[str]) -> Iterable[RenderableType]:
    head, rows = table.cells()
    shown = Table(box=box.SIMPLE_HEAD)
    for name in head:
        shown.add_column(name, justify="left" if name in table.columns else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    yield shown
    yield from (f"gate failed: {gate}" for gate in gates)
    yield f"wrote {folder / 'results.csv'}, results.md and results.html"
