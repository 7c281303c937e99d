"""``pdq-export show-config``: the options that made a file."""

from pathlib import Path

import click

from .command import Frame, Outcome, command
from .paths import ModelPath


@command(
    summary="Print the options that made a quantized file.",
    example="pdq-export show-config model-w4a4.onnx > release.toml\n"
    "pdq-export quantize model.onnx --config release.toml",
)
@click.argument("model", type=ModelPath("a quantized model"), metavar="QUANT.onnx")
def show_config(frame: Frame, *, model: Path) -> Outcome:
    """Print the options that a file was quantized with as TOML, from its metadata.

    With the same model, data, versions, device and number of threads, which are told as well, quantize --config makes
    the same file of it, byte for byte.
    """
    from pdq_export.commands.show_config import show_config as read

    return Outcome(text=read(model).splitlines())
