"""``pdq-export quantize``: options, checks that must come before the work, and what is shown of it."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from pdq_export.config.config import Config, make_config
from pdq_export.config.option import QUANTIZE
from pdq_export.config.record import MIXED, bits_word
from pdq_export.config.sections import AUTO
from pdq_export.errors import DataError, counted
from pdq_export.process import Launch, find_modules_here, tune_process

from .command import Frame, Outcome, command
from .log import NOTES
from .options import config_options, given
from .paths import ModelPath
from .progress import ProgressDisplay
from .render import (
    REMEDIES,
    gate_lines,
    operations_line,
    remedy_lines,
    report_table,
    search_lines,
    session_note,
    version_note,
)

if TYPE_CHECKING:
    from pdq_export.commands.quantize import Result

DEFAULT_DATA = "calib_data"


@command(
    summary="Quantize an ONNX CNN and compare it with FP32.",
    example="pdq-export quantize model.onnx --bits 4/4 --calib images/ --eval test.npz --report report.json",
    json_schema="pdq_export.report.report",
    together=True,
)
@click.argument("model", type=ModelPath(), metavar="MODEL.onnx")
@config_options(QUANTIZE)
def quantize(frame: Frame, *, model: Path, config_file: Path | None, **arguments: Any) -> Outcome:
    """Quantize an ONNX CNN to W/A bits and show how it compares with FP32.

    Weights get W bits and activations A bits; the first and the last layer keep 8. The result is an ordinary ONNX
    file for ONNX Runtime.

    Images are given as (a) an .npz with `images` (N,C,H,W), float32 as they are or uint8 with arrays `mean` and
    `std` for pixels scaled to 0..1, and optionally `labels`; (b) an .npy with float32 images; (c) a folder of images
    with an optional preprocess.toml (mean, std, resize, crop) and labels.csv (file,label); (d) MODULE:FUNCTION, in the
    current folder or installed, which is imported and called, so that its code is run, and returns arrays, (X, y) or
    an iterable, such as a torch DataLoader. Without --calib, those in the folder calib_data are taken. --calib
    synthetic takes none: images are learned from what the model's BatchNormalization has gathered (./synthetic is a
    file of that name). Gates are judged on --eval; where one fails the exit code is 1, and the files are written all
    the same.
    """
    from pdq_export.commands.settle import settle

    config = with_images(settle(config_file, given(arguments), command=QUANTIZE))
    if config.file.output is None:
        config = make_config({"output": _default_output(model, config)}, base=config)
    _check_paths(model, config, config_file, writes=frame.tells)
    result = _run(model, config, frame)
    if result is None:
        return Outcome()
    failed = [str(gate) for gate in result.report.failed_gates]
    return Outcome(text=_lines(config, result), to_json=result.report.to_json, failed_gates=failed)


def with_images(config: Config) -> Config:
    """With what calib_data has where no images are named; its evaluation images only go with its calibration images."""
    if config.data.calib is not None:
        return config
    from pdq_export.data import find_default

    found, found_evaluation = find_default(DEFAULT_DATA)
    if found is None:
        raise DataError(
            f"no calibration images: --calib is not given, and {Path.cwd() / DEFAULT_DATA} has no calib.npz, calib.npy "
            "or folder calib; give --calib PATH, or get an example with: pdq-export example"
        )
    NOTES.info("calibration images: %s (found; --calib takes others)", found)
    fields = {"calib": found}
    if config.data.eval is None and found_evaluation is not None:
        NOTES.info("evaluation images: %s (found; --eval takes others)", found_evaluation)
        fields["eval"] = found_evaluation
    return make_config(fields, base=config)


def _default_output(model: Path, config: Config) -> Path:
    from pdq_export.spec import BitWidths

    bits = AUTO if config.plan.bits == AUTO else MIXED
    if config.plan.bits != AUTO and config.search.bits_from is None:
        widths = BitWidths.parse(config.plan.bits)
        bits = f"w{widths.weight}a{widths.activation}"
    layout = "" if config.file.target == "ort" else f"-{config.file.target}"
    return Path(f"{model.stem}-{bits}{layout}.onnx")


def _check_paths(model: Path, config: Config, config_file: Path | None, *, writes: bool) -> None:
    """Nobody shall wait for a calibration, or for imports, whose result cannot be written, or lose a file to it."""
    from pdq_export.commands.written import check_written
    from pdq_export.data import check_form
    from pdq_export.data.synthetic import asks_synthetic

    find_modules_here()
    calib, judged = config.data.calib, config.data.eval
    sources = [source for source in (None if asks_synthetic(calib) else calib, judged) if source is not None]
    for source in sources:
        check_form(source)
    if writes:
        check_written(config, model=model, data=sources, others=[config_file], makes_model=True)


def _run(model: Path, config: Config, frame: Frame) -> "Result | None":
    """The result; None of a process that works for another."""
    tune_process(limited=config.run.max_memory is not None, deterministic=config.run.deterministic)
    with frame.progress() as progress, frame.work():
        # Imported here, behind every check that needs no torch: it takes seconds.
        if frame.launch is not None:
            return _run_together(model, config, frame.launch, progress)
        from pdq_export.commands.quantize import quantize as run

        return run(model, config=config, progress=progress)


def _run_together(model: Path, config: Config, launch: Launch, progress: ProgressDisplay) -> "Result | None":
    from pdq_export.calibrate.device import choose_device
    from pdq_export.commands.quantize import quantize_together
    from pdq_export.ranks.joining import joined

    with joined(launch, choose_device(config.run.device, launch.local_rank)) as ranks:
        return quantize_together(ranks, model, config=config, progress=progress)


def _lines(config: Config, result: "Result") -> Iterable[RenderableType]:
    on = str(config.data.eval or config.data.calib)
    if "synthesis" in result.report.settings and config.data.eval is None:
        on = "the model's own making, which calibration has seen: agreement on them is no accuracy; --eval gives others"
    elif result.report.settings["evaluated_on_calibration_images"]:
        on += f", used for calibration too: {'give others with --eval' if config.data.eval else '--eval gives others'}"
    yield f"{counted(result.report.images, 'image')} of {on}"
    yield report_table(result.report, bits=bits_word(result.report.settings))
    if result.report.search is not None:
        yield from search_lines(result.report.search)
        if (ops := result.report.search.chosen.bit_ops) is not None:
            yield operations_line(ops)
    if result.report.latency_note is not None and not result.report.is_slower:  # else a warning has told it
        yield result.report.latency_note
    yield from gate_lines(result.report)
    yield from remedy_lines(result.report.remedies, most=REMEDIES, loss=result.report.loss)
    yield from (f"wrote {shlex.quote(str(path))}" for path in result.files)
    if result.report.min_onnxruntime and config.file.target != "ort":
        yield version_note(result.report.min_onnxruntime)
    if result.report.session_config:
        yield session_note(result.report.session_config)
