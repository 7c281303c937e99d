"""``pdq-export sensitivity``: what quantizing each tensor alone does to the prediction."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdq_export.config.method import SENSITIVITY_SAMPLES
from pdq_export.config.option import SENSITIVITY
from pdq_export.errors import counted, first_few, printable
from pdq_export.process import find_modules_here, tune_process

from .command import Frame, Outcome, command
from .options import config_options, given
from .paths import ModelPath
from .quantize import with_images

if TYPE_CHECKING:
    from pdq_export.report.sensitivity import SensitivityReport
    from pdq_export.report.tensor_losses import SensitivityRow

_PAIRS = 10  # that are shown


@command(
    summary="Show what quantizing each tensor alone does to the prediction.",
    example="pdq-export sensitivity model.onnx --calib images/ --allowed-bits 2,3,4,8",
    json_schema="pdq_export.report.sensitivity",
)
@click.argument("model", type=ModelPath(), metavar="MODEL.onnx")
@config_options(SENSITIVITY)
@click.option(
    "--samples",
    type=click.INT,
    metavar="N",
    default=SENSITIVITY_SAMPLES,
    show_default=True,
    help="Take the first N images.",
)
@click.option(
    "--estimate",
    type=click.Choice(["fisher", "measured"]),
    default="fisher",
    show_default=True,
    help="By the second-order expansion around FP32, or by running the network for every tensor and width.",
)
@click.option("--pairs", is_flag=True, help="Also what two tensors of one block do together, beyond the sum.")
def sensitivity(frame: Frame, *, model: Path, config_file: Path | None, samples: int, **arguments: Any) -> Outcome:
    """Show what quantizing each weight and each activation alone does to the prediction, at every width.

    All else stays in float. Weights are rounded so that their errors make up for each other, as after calibration. The
    worst come first, by what they do at the fewest bits; beside the losses stand the bits that are planned. Images are
    those of --calib, as for quantize. What was found is kept, and the same command prints it at once.
    """
    from pdq_export.commands.settle import settle

    own = {name: arguments.pop(name) for name in ("estimate", "pairs")}
    config = with_images(settle(config_file, given(arguments), command=SENSITIVITY))
    find_modules_here()
    tune_process(limited=config.run.max_memory is not None)
    with frame.progress() as progress, frame.work():
        # Imported here, behind every check that needs no torch: it takes seconds.
        from pdq_export.commands.sensitivity import sensitivity as run

        report = run(model, config=config, samples=samples, progress=progress, **own)
    return Outcome(text=_lines(report), to_json=report.to_json)


def _lines(report: "SensitivityReport") -> Iterable[RenderableType]:
    from pdq_export.report.table import images_of
    from pdq_export.report.tensor_losses import MEASURES

    found = report.sensitivity
    how = "estimated to second order" if found.estimate == "fisher" else "measured"
    of = images_of(found.images, report.calibration)
    yield f"{of}; {counted(len(report.groups), 'tensor')}, worst first"
    yield f"{MEASURES[found.measure]}, where one tensor alone has so many bits; {how}"
    yield _table(report)
    if found.pairs:
        yield "what two tensors of a block do together, beyond the sum, at the fewest bits (the largest):"
        yield from _pair_lines(report)


def _table(report: "SensitivityReport") -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("tensor", overflow="fold")
    table.add_column("layer", overflow="fold")
    for name in ("", "bits", *map(str, report.widths)):
        table.add_column(name, justify="right")
    for row in report.groups:
        table.add_row(*(Text(printable(cell)) for cell in _cells(row, report)))
    return table


def _cells(row: "SensitivityRow", report: "SensitivityReport") -> Iterable[str]:
    yield ", ".join(row.tensors)
    yield first_few([report.labels[layer] for layer in row.layers]) if row.layers else ""
    yield "W" if row.role == "weight" else "A"
    yield str(row.planned_bits)
    yield from (f"{value:.2g}" for value in row.prediction)


def _pair_lines(report: "SensitivityReport") -> Iterable[str]:
    fewest = report.widths[0], report.widths[0]
    pairs = sorted(report.sensitivity.pairs.items(), key=lambda item: abs(item[1][fewest]), reverse=True)
    for names, together in pairs[:_PAIRS]:
        alone = sum(report.sensitivity.prediction[name][fewest[0]] for name in names)
        yield f"  {names[0]}, {names[1]}: {together[fewest]:+.2g} beside {alone:.2g}"
