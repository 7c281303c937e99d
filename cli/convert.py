"""``pdq-export convert``: a finished file in another layout."""

import shlex
from pathlib import Path

import click
from rich.console import Console

from pdq_export.errors import ModelError, OptionError

from .log import libraries_print_nothing, set_up_logging
from .options import OutputPath
from .render import printable, session_note, version_note

_PATH = click.Path(path_type=Path)


@click.command(
    short_help="Write a quantized file in another layout.",
    epilog="Exit codes: 0 done, 2 wrong input or options, 130 interrupted, 1 a bug in pdq-export.",
)
@click.argument("model", type=_PATH, metavar="QUANT.onnx")
@click.option("--target", required=True, metavar="ort|native|qcdq", help="The layout to write.")
@click.option(
    "-o", "--output", type=OutputPath(), metavar="OUT.onnx", help="The file to write.  [default: ./QUANT-TARGET.onnx]"
)
@click.option("--overwrite", is_flag=True, help="Replace the output where it exists.")
@click.option(
    "--opset", type=int, metavar="N", help="Write no newer opset than N.  [default: as quantize would have written]"
)
@click.option(
    "--external-data", is_flag=True, help="Write the weights to OUT.onnx.data.  [default: for files over 2 GB]"
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Log everything, with tracebacks.")
def convert(
    model: Path,
    *,
    target: str,
    output: Path | None,
    overwrite: bool,
    opset: int | None,
    external_data: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write a file that pdq-export quantized for ort, native or qcdq in another of these layouts.

    Nothing is calibrated again: the integers are the same, and so are the outputs.
    """
    if quiet and verbose:
        raise OptionError("--quiet and --verbose contradict each other; give one of them")
    set_up_logging(Console(stderr=True), quiet=quiet, verbose=verbose)
    if not model.is_file():
        raise ModelError(f"{model}: {'is a folder' if model.is_dir() else 'no such file'}; expected a quantized model")
    # Imported here: torch is not needed, but onnx takes a second.
    import onnxruntime

    from pdq_export.commands.convert import check_target
    from pdq_export.commands.convert import convert as run
    from pdq_export.graph.save import check_output, save_model
    from pdq_export.validate import min_onnxruntime, needed_config

    onnxruntime.set_default_logger_severity(4)
    check_target(target)
    output = output or Path(f"{model.stem}-{target}.onnx")
    check_output(output, overwrite=overwrite, model=model, external=external_data)
    with libraries_print_nothing():
        converted = run(model, target, opset=opset)
    written = save_model(output, converted, external=external_data, overwrite=overwrite)
    if not quiet:
        console = Console(highlight=False)
        for path, content in written.items():
            size = f"{len(content) / 1e3:,.0f} kB"
            console.print(printable(f"wrote {shlex.quote(str(path))}, {size}"), markup=False, soft_wrap=True)
        if version := min_onnxruntime(converted.SerializeToString()):
            console.print(version_note(version), markup=False, soft_wrap=True)
        config = needed_config(converted.SerializeToString())
        if config:
            console.print(session_note(config), markup=False, soft_wrap=True)
