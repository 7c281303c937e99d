"""``pdq-export init``: a file of options to start from."""

import os
import shlex
from pathlib import Path

import click

from pdq_export.errors import OptionError
from pdq_export.files import check_writable, write_atomically

from .command import Frame, Outcome, command
from .paths import ModelPath, OutputPath


@command(
    summary="Write a file with every option, explained.",
    example="pdq-export init model.onnx\npdq-export quantize model.onnx --config model.toml",
)
@click.argument("model", type=ModelPath(), metavar="MODEL.onnx")
@click.option(
    "-o", "--output", type=OutputPath(), metavar="OUT.toml", help="The file to write.  [default: ./MODEL.toml]"
)
def init(frame: Frame, *, model: Path, output: Path | None) -> Outcome:
    """Write a TOML file for --config: every option with its help, choices and default, commented out.

    A file that exists is never replaced.
    """
    output = output or Path(f"{model.stem}.toml")
    if os.path.lexists(output):  # which knows no names that are too long, and no folders that are locked
        raise OptionError(f"{output}: exists already; choose another name with --output, or remove it")
    check_writable(output)
    from pdq_export.commands.init import init as write

    text = write(model)
    write_atomically(output, text.encode(errors="backslashreplace"))
    return Outcome(
        text=(
            f"wrote {shlex.quote(str(output))}; edit it, then: "
            f"pdq-export quantize {shlex.quote(str(model))} --config {shlex.quote(str(output))}",
        )
    )
