"""The command line, put together."""

import click

import pdq_export

from .bench import bench
from .cache import cache
from .command import EXIT_CODES, PROGRAM, Program
from .compare import compare
from .convert import convert
from .example import example
from .init import init
from .inspect import inspect
from .quantize import quantize
from .report import report
from .sensitivity import sensitivity
from .show_config import show_config
from .sweep import sweep
from .validate import validate

_EPILOG = f"""\b
Try it on the embedded example:
  pdq-export example
  pdq-export quantize calib_data/fashion_resnet.onnx --bits 4/8

{EXIT_CODES}
"""


@click.group(
    name=PROGRAM,
    cls=Program,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(pdq_export.__version__, prog_name=PROGRAM)
def app() -> None:
    """Low-bit post-training quantization of ONNX CNNs with PD-Quant, written for ONNX Runtime."""


app.add_command(quantize)
app.add_command(sweep)
app.add_command(inspect)
app.add_command(validate)
app.add_command(bench)
app.add_command(compare)
app.add_command(report)
app.add_command(sensitivity)
app.add_command(convert)
app.add_command(init)
app.add_command(show_config)
app.add_command(cache)
app.add_command(example)


def main() -> None:
    """Entry point of the command ``pdq-export``."""
    app.main()
