"""``pdq-export quantize``: options, checks that must come before the work, and what is shown of it."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from pdq_export.config.method import choose_options
from pdq_export.errors import DataError, OptionError
from pdq_export.process import tune_process

from .command import Frame, Outcome, command
from .log import NOTES
from .options import check_plan_options, plan_options
from .paths import ModelPath, OutputPath
from .render import report_table, session_note, version_note

if TYPE_CHECKING:
    from pdq_export.commands.quantize import Result

DEFAULT_DATA = "calib_data"
_PATH = click.Path(path_type=Path)
_SETTINGS = ("samples", "iters", "correction_iters", "seed", "output_loss")  # fields of CalibrationOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; ``arguments``: those of `pdq_export.quantize` that are not here, by name."""

    model: Path
    calib: Path
    eval: Path | None
    output: Path
    report: Path | None
    overwrite: bool
    arguments: dict[str, Any]


@command(
    summary="Quantize an ONNX CNN and compare it with FP32.",
    example="pdq-export quantize model.onnx --bits 4/4 --calib images/ --eval test.npz --report report.json",
    json_schema="pdq_export.validate.report",
)
@click.argument("model", type=ModelPath(), metavar="MODEL.onnx")
@plan_options
@click.option(
    "--calib",
    type=_PATH,
    metavar="PATH",
    help="Calibration images: .npz, .npy or a folder of images.  [default: calib_data/calib.*]",
)
@click.option(
    "--eval",
    "evaluation",
    type=_PATH,
    metavar="PATH",
    help="Evaluation images for the report, like --calib.  [default: calib_data/eval.*, where --calib is not given]",
)
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    metavar="OUT.onnx",
    help="The file to write.  [default: ./MODEL-w4a4.onnx, or -w4a4-TARGET]",
)
@click.option("--report", type=OutputPath(), metavar="OUT.json", help="Write the report as JSON.")
@click.option("--overwrite", is_flag=True, help="Replace the output and the report where they exist.")
@click.option(
    "--preset",
    default="balanced",
    metavar="fast|balanced|paper",
    help="The budget of images and steps.  [default: balanced]",
)
@click.option(
    "--method",
    default="pd-quant",
    metavar="pd-quant|qdrop|brecq|adaround|nearest",
    help="PD-Quant, or a method that it grew from.  [default: pd-quant]",
)
@click.option(
    "--output-loss",
    metavar="auto|kl|mse",
    help="How predictions are compared: KL over classes, or squared error.  [default: auto, by the output's shape]",
)
@click.option("--samples", type=int, metavar="N", help="Calibration images to use, the first N.  [default: preset's]")
@click.option("--iters", type=int, metavar="N", help="Optimization steps for each block.  [default: preset's]")
@click.option(
    "--correction-iters",
    type=int,
    metavar="N",
    help="Steps of distribution correction; 0 switches it off.  [default: preset's]",
)
@click.option("--seed", type=int, metavar="S", help="Seed of everything random.  [default: 0]")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set any other option of the method, e.g. temperature=1; again for more.",
)
@click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda[:n]",
    help="Where to calibrate.  [default: auto, a GPU where there is one]",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="Keep calibration within SIZE, e.g. 4GB, with temporary files; the result is the same.  [default: no limit]",
)
@click.option(
    "--simulated-images",
    type=int,
    metavar="N",
    help="Compare the file with its simulation on at most N images, evenly spread.  [default: 1024]",
)
@click.option(
    "--external-data", is_flag=True, help="Write the weights to OUT.onnx.data.  [default: for files over 2 GB]"
)
def quantize(
    frame: Frame,
    *,
    model: Path,
    evaluation: Path | None,
    calib: Path | None,
    output: Path | None,
    report: Path | None,
    overwrite: bool,
    assignments: tuple[str, ...],
    **arguments: Any,
) -> Outcome:
    """Quantize an ONNX CNN to W/A bits and show how it compares with FP32.

    Weights get W bits and activations A bits; the first and the last layer keep 8. The result is an ordinary ONNX
    file for ONNX Runtime.

    Images are given as (a) an .npz with `images` (N,C,H,W), float32 as they are or uint8 with arrays `mean` and
    `std` for pixels scaled to 0..1, and optionally `labels`; (b) an .npy with float32 images; (c) a folder of images
    with an optional preprocess.toml (mean, std, resize, crop) and labels.csv (file,label). Without --calib, those in
    the folder calib_data are taken.
    """
    calib, evaluation = _find_images(calib, evaluation)
    if arguments["simulated_images"] is None:
        del arguments["simulated_images"]  # the library has the default
    settings = {name: value for name in _SETTINGS if (value := arguments.pop(name)) is not None}
    settings |= _parse_assignments(assignments, settings)
    choose_options(method=arguments["method"], preset=arguments["preset"], overrides=settings)
    check_plan_options(arguments)
    request = Request(
        model=model,
        calib=calib,
        eval=evaluation,
        output=output or _default_output(model, arguments["bits"], arguments["target"]),
        report=report,
        overwrite=overwrite,
        arguments={**arguments, "options": settings},
    )
    _check_paths(request)
    result = _run(request, frame)
    return Outcome(text=_lines(request, result), to_json=result.report.to_json)


def _parse_assignments(assignments: Sequence[str], given: Mapping[str, Any]) -> dict[str, str]:
    """``NAME=VALUE`` of --set; names and values are checked where all options are."""
    settings: dict[str, str] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise OptionError(f"--set {text!r}: expected NAME=VALUE, for example temperature=1")
        if name in settings or name in given:
            raise OptionError(f"--set {text!r}: {name} is set twice; give it once")
        settings[name] = value.strip()
    return settings


def _find_images(calib: Path | None, evaluation: Path | None) -> tuple[Path, Path | None]:
    """What was named, or what calib_data has; evaluation images of calib_data only go with its calibration images."""
    if calib is not None:
        return calib, evaluation
    from pdq_export.data import find_default

    found, found_evaluation = find_default(DEFAULT_DATA)
    if found is None:
        raise DataError(
            f"no calibration images: --calib is not given, and {Path.cwd() / DEFAULT_DATA} has no calib.npz, calib.npy "
            "or folder calib; give --calib PATH, or get an example with: pdq-export example"
        )
    NOTES.info("calibration images: %s (found; --calib takes others)", found)
    if evaluation is None and found_evaluation is not None:
        NOTES.info("evaluation images: %s (found; --eval takes others)", found_evaluation)
        evaluation = found_evaluation
    return found, evaluation


def _default_output(model: Path, bits: str, target: str) -> Path:
    from pdq_export.spec import BitWidths

    widths = BitWidths.parse(bits)
    layout = "" if target == "ort" else f"-{target}"
    return Path(f"{model.stem}-w{widths.weight}a{widths.activation}{layout}.onnx")


def _check_paths(request: Request) -> None:
    """Nobody shall wait for a calibration, or for imports, whose result cannot be written, or lose a file to it."""
    from pdq_export.data import check_form
    from pdq_export.graph.save import check_output

    images = [path for path in (request.calib, request.eval) if path is not None]
    for path in images:
        check_form(path)
    check_output(
        request.output,
        overwrite=request.overwrite,
        model=request.model,
        inputs=tuple(images),
        external=request.arguments["external_data"],
        report=request.report,
    )


def _run(request: Request, frame: Frame) -> "Result":
    tune_process(limited=request.arguments["max_memory"] is not None)
    with frame.progress() as progress, frame.work():
        # Imported here, behind every check that needs no torch: it takes seconds.
        from pdq_export.commands.quantize import quantize as run

        return run(
            request.model,
            calib=request.calib,
            eval=request.eval,
            output=request.output,
            report=request.report,
            overwrite=request.overwrite,
            progress=progress,
            **request.arguments,
        )


def _lines(request: Request, result: "Result") -> Iterable[RenderableType]:
    on = str(request.eval or request.calib)
    if result.report.settings["evaluated_on_calibration_images"]:
        on += f", used for calibration too: {'give others with --eval' if request.eval else '--eval gives others'}"
    yield f"{result.report.images:,} images of {on}"
    yield report_table(result.report, bits=request.arguments["bits"])
    yield from (f"wrote {shlex.quote(str(path))}" for path in result.files)
    if result.report.min_onnxruntime and request.arguments["target"] != "ort":
        yield version_note(result.report.min_onnxruntime)
    if result.report.session_config:
        yield session_note(result.report.session_config)
