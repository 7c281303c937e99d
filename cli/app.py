"""The command group: everything that goes wrong becomes one line on stderr and an exit code."""

import errno
import logging
import sys
from typing import Any, NoReturn

import click

import pdq_export
from pdq_export.errors import PdqError
from pdq_export.exhaustion import is_exhaustion

from .convert import convert
from .example import example
from .inspect import inspect
from .quantize import quantize

PROGRAM = "pdq-export"
EXIT_INTERNAL, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130

logger = logging.getLogger(__name__)


class App(click.Group):
    """A click group with our exit codes: 2 for what the user can mend, 130 for Ctrl-C, 1 for a bug of ours."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and leave the process."""
        extra["standalone_mode"] = False
        try:
            status = super().main(*args, **{"prog_name": PROGRAM, **extra})
            sys.stdout.flush()
        except PdqError as error:
            logger.debug("raised here", exc_info=error)
            _fail(f"error: {error}", EXIT_USER)
        except click.exceptions.NoArgsIsHelpError as error:  # its message is the help, which is not one line
            click.echo(error.format_message(), err=True)
            sys.exit(EXIT_USER)
        except click.ClickException as error:
            _fail(f"error: {_usage(error)}", EXIT_USER)
        except (click.Abort, KeyboardInterrupt) as error:
            _fail(f"interrupted{_notes(error)}", EXIT_INTERRUPTED)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                _leave_quietly()
            if is_exhaustion(error):  # outside of what the library does, which tells it itself
                _fail(f"error: memory ran out ({type(error).__name__}); end other programs", EXIT_USER)
            logger.debug("raised here", exc_info=error)
            detail = f"{type(error).__name__}: {error}{_notes(error)}"
            _fail(f"internal error: {detail}; re-run with --verbose for the traceback", EXIT_INTERNAL)
        sys.exit(status if isinstance(status, int) else 0)


def _usage(error: click.ClickException) -> str:
    command = getattr(getattr(error, "ctx", None), "command_path", None)
    message = error.format_message()
    return f"{message.rstrip('.')}. See {command} --help" if command else message


def _notes(error: BaseException) -> str:
    """What was noted about an error, or about the Ctrl-C that click made another one of."""
    notes = [*getattr(error, "__notes__", ()), *getattr(error.__cause__, "__notes__", ())]
    return "".join(f"; {note}" for note in notes)


def _fail(message: str, status: int) -> NoReturn:
    """Print one line, whatever the message holds, and exit."""
    click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)
    sys.exit(status)


def _leave_quietly() -> NoReturn:
    """The reader of our output has gone; without a stdout, Python does not complain about it at exit either."""
    sys.stdout = None
    sys.exit(EXIT_INTERNAL)


_EPILOG = """\b
Try it on the embedded example:
  pdq-export example
  pdq-export quantize calib_data/fashion_resnet.onnx --bits 4/4
"""


@click.group(
    name=PROGRAM,
    cls=App,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(pdq_export.__version__, prog_name=PROGRAM)
def app() -> None:
    """Low-bit post-training quantization of ONNX CNNs with PD-Quant, written for ONNX Runtime."""


app.add_command(quantize)
app.add_command(inspect)
app.add_command(convert)
app.add_command(example)


def main() -> None:
    """Entry point of the command ``pdq-export``."""
    app.main()
