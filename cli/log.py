"""Messages on stderr: what the library logs, and what the command itself has to say."""

import contextlib
import io
import logging
import warnings

from rich.console import Console

NOTES = logging.getLogger("pdq_export.cli")
# What --resume has found, which onnxruntime a file needs, and what a page has cost, is no detail.
_TOLD = ("pdq_export.commands.keeping", "pdq_export.commands.dry_run", "pdq_export.commands.details")


class ConsoleHandler(logging.Handler):
    """Writes records through the console that also shows the progress bar, so that neither breaks the other."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record: notes as they are, anything above with its level."""
        try:
            prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            text = self.format(record)
            self._console.print(f"pdq-export: {prefix}{text}", markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def set_up_logging(console: Console, *, quiet: bool, verbose: bool) -> None:
    """Send the library's warnings and the command's notes to stderr; with ``verbose`` everything."""
    handler = ConsoleHandler(console)
    library = logging.getLogger("pdq_export")
    library.handlers = [handler]
    library.propagate = False
    library.setLevel(logging.DEBUG if verbose else logging.WARNING)
    NOTES.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    for name in _TOLD:
        logging.getLogger(name).setLevel(NOTES.level)
    # Warnings of the libraries below are about their own use of one another; a user cannot act on them.
    logging.captureWarnings(True)
    python_warnings = logging.getLogger("py.warnings")
    python_warnings.handlers = [handler if verbose else logging.NullHandler()]
    python_warnings.propagate = False
    if not verbose:
        warnings.simplefilter("ignore")


def be_silent() -> None:
    """Send nothing anywhere, of a process that works for another, which tells."""
    library = logging.getLogger("pdq_export")
    library.handlers = [logging.NullHandler()]
    library.propagate = False
    warnings.simplefilter("ignore")


def libraries_print_nothing() -> contextlib.AbstractContextManager[object]:
    """A context in which nobody else writes to stdout, which is for results: onnxsim prints what it finds."""
    return contextlib.redirect_stdout(io.StringIO())
