"""``pdq-export compare``: where the error of a quantized file arises, layer by layer."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdq_export.config.option import COMPARE
from pdq_export.errors import counted, first_few, printable
from pdq_export.process import find_modules_here

from .command import Frame, Outcome, command
from .options import config_options, given, pair_arguments
from .render import remedy_lines

if TYPE_CHECKING:
    from pdq_export.report.layers import LayerReport, LayerRow

_LINES = 10  # of what would help
_DECIBELS = (("at output", "output_db"), ("own", "own_db"), ("handed on", "handed_on_db"), ("both", "sqnr_db"))


@command(
    summary="Show where the error of a quantized file arises, layer by layer.",
    example="pdq-export compare model.onnx model-w4a4.onnx --data test.npz --samples 32",
    json_schema="pdq_export.report.layers",
)
@pair_arguments
@click.option("--samples", type=click.INT, metavar="N", default=64, show_default=True, help="Take the first N of them.")
@click.option(
    "--batch-size",
    type=click.INT,
    metavar="N",
    help="Samples in a batch.  [default: up to 16, as memory allows, or what the files fix]",
)
@config_options(COMPARE)
def compare(
    frame: Frame,
    *,
    model: Path,
    quantized: Path,
    data: str,
    samples: int,
    batch_size: int | None,
    config_file: Path | None,
    **arguments: Any,
) -> Outcome:
    """Compare every tensor that a quantized ONNX file and its FP32 file both have, worst first.

    Whoever made the files, QDQ or QOperator: tensors are matched by name, or through the nodes around them.
    Signal-to-noise ratios, in dB: own, of a layer that has the FP32 network's input; handed on, of what it makes of the
    error of its input; both, in the quantized network; at output, of the FP32 network's output where nothing but this
    layer has its own error, which is what the table is sorted by. Below is what to try next, options of quantize
    beside those that were given, with what they cost in bytes, about.
    """
    from pdq_export.commands.settle import settle

    config = settle(config_file, given(arguments), command=COMPARE)
    find_modules_here()
    with frame.progress() as progress, frame.work():
        # Imported here, behind every check that needs no onnxruntime.
        from pdq_export.commands.compare import compare_models

        report = compare_models(
            model, quantized, data=data, samples=samples, batch_size=batch_size, config=config, progress=progress
        )
    return Outcome(text=_lines(report), to_json=report.to_json)


def _lines(report: "LayerReport") -> Iterable[RenderableType]:
    from pdq_export.report.table import images_of

    of = images_of(report.images, report.evaluation)
    yield f"{of}; {counted(len(report.tensors), 'tensor')}, worst first"
    yield _table(report)
    if report.left_out:
        yield f"left out, since their shapes differ: {first_few(report.left_out)}"
    yield from remedy_lines(report.remedies, most=_LINES)


def _table(report: "LayerReport") -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    table.add_column("operator")
    for name in (*(name for name, _ in _DECIBELS), "cosine", "range", "quantizer's", "clipped", "levels", "W"):
        table.add_column(name, justify="right")
    for row in report.tensors:
        table.add_row(*(Text(printable(cell)) for cell in _cells(row)))
    return table


def _cells(row: "LayerRow") -> Iterable[str]:
    yield ", ".join(row.layers) or row.node
    yield row.op_type
    for _, field in _DECIBELS:
        value = getattr(row, field)
        yield "" if value is None else f"{value:.1f}"
    yield f"{row.cosine:.4f}"
    yield _range(row.range)
    yield "" if row.quantizer_range is None else _range(row.quantizer_range)
    yield "" if row.clipped is None else f"{100 * row.clipped:.2f} %"
    yield "" if row.levels is None else f"{row.levels_used} of {row.levels}"
    yield "" if row.weight_bits is None else str(row.weight_bits)


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}"
