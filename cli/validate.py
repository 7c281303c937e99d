"""``pdq-export validate``: any quantized file beside the FP32 file that it was made of, with gates for CI."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from pdq_export.config.config import Config
from pdq_export.config.option import VALIDATE
from pdq_export.errors import first_few
from pdq_export.process import find_modules_here

from .command import Frame, Outcome, command
from .options import config_options, given, pair_arguments
from .render import REMEDIES, gate_lines, remedy_lines, report_table, session_note

if TYPE_CHECKING:
    from pdq_export.report import Report


@command(
    summary="Judge a quantized file beside its FP32 file, with gates.",
    example="pdq-export validate model.onnx model-int8.onnx --data test.npz --max-drop 1 --no-float-layers",
    json_schema="pdq_export.report.report",
)
@pair_arguments
@click.option(
    "--batch-size",
    type=click.INT,
    metavar="N",
    help="Samples in a batch; 1 for detectors that select boxes themselves.  [default: 16, or what the files fix]",
)
@config_options(VALIDATE)
def validate(
    frame: Frame,
    *,
    model: Path,
    quantized: Path,
    data: str,
    batch_size: int | None,
    config_file: Path | None,
    **arguments: Any,
) -> Outcome:
    """Run a quantized ONNX file beside the FP32 file that it was made of, and judge it by gates.

    Whoever made the files: inputs and outputs are matched by name, or by position where names differ. Shown are top-1
    and top-5 where there are labels, agreement, signal-to-noise ratio and relative error of each output, how many
    layers run as integers, size and latency. A gate that fails is exit code 1; what was asked for is written all the
    same.
    """
    fields = given(arguments)
    from pdq_export.commands.settle import settle
    from pdq_export.commands.written import check_written

    config = settle(config_file, fields, command=VALIDATE)
    find_modules_here()
    check_written(config, model=model, data=[data], others=[quantized, config_file], makes_model=False)
    with frame.progress() as progress, frame.work():
        # Imported here, behind every check that needs no onnxruntime.
        from pdq_export.commands.validate import validate_models

        report = validate_models(model, quantized, data=data, batch_size=batch_size, config=config, progress=progress)
    return Outcome(
        text=_lines(report, config), to_json=report.to_json, failed_gates=[str(gate) for gate in report.failed_gates]
    )


def _lines(report: "Report", config: Config) -> Iterable[RenderableType]:
    from pdq_export.report.table import images_of

    yield images_of(report.images, report.settings["evaluation"])
    for name, other in report.settings["renamed"].items():
        yield f"{name} is {other} in the quantized file"
    yield report_table(report, bits="quantized")
    yield from _float_lines(report)
    yield from gate_lines(report)
    yield from remedy_lines(report.remedies, most=REMEDIES, loss=report.loss)
    written = (*config.file.report, config.gates.junit, config.gates.markdown)
    yield from (f"wrote {shlex.quote(path)}" for path in written if path is not None)
    if report.session_config:
        yield session_note(report.session_config)


def _float_lines(report: "Report") -> Iterable[str]:
    """What does not run in integers though the file is quantized."""
    kernels = report.kernels
    if kernels is None or not kernels.integer:
        return
    if kernels.floating:
        yield f"layers that run in float: {_counted(kernels.floating)} ({first_few(kernels.floating_nodes)})"
    if kernels.between_pairs:
        yield f"others that run in float between quantized tensors: {_counted(kernels.between_pairs)}"


def _counted(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {op_type}" for op_type, count in operators.items())
