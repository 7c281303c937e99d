"""The frame of every command: what all have and do alike. A command itself is options, a body that computes, and lines.

Everything that goes wrong becomes one line on stderr and an exit code; results go to stdout, as text or as JSON.
"""

import contextlib
import dataclasses
import enum
import errno
import functools
import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import click
from rich.console import Console, RenderableType

from pdq_export.errors import RESUME, OptionError, PdqError, printable
from pdq_export.exhaustion import is_exhaustion
from pdq_export.process import Launch, ToldToEnd, end_in_peace, end_orderly, find_launch

from .log import be_silent, libraries_print_nothing, set_up_logging
from .progress import ProgressDisplay

PROGRAM = "pdq-export"
_WIDE = 1000  # columns: no folding where a program reads
_SIGPIPE = 141  # what shells say of a process whose reader has gone; neither its user's fault nor ours

logger = logging.getLogger(__name__)


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    GATE_FAILED = 1
    WRONG_INPUT = 2
    INTERNAL = 3
    INTERRUPTED = 130


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.GATE_FAILED: "a gate failed",
    ExitCode.WRONG_INPUT: "wrong input or options",
    ExitCode.INTERNAL: "a bug of ours",
    ExitCode.INTERRUPTED: "interrupted",
}
EXIT_CODES = "Exit codes: " + ", ".join(f"{code:d} {meaning}" for code, meaning in _MEANINGS.items()) + "."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command has found out.

    ``text``: lines and tables for people, printed one by one as they come. ``to_json``: the same for programs, of
    commands that declare a ``json_schema``. ``failed_gates``: a line for each that failed, with value and limit, which
    the text has, too.
    ``errors``: a line for each part of the work that could not be done, of commands that do the others all the same.
    """

    text: Iterable[RenderableType] = ()
    to_json: Callable[[], str] | None = None
    failed_gates: Sequence[str] = ()
    errors: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """What the body of a command gets: the console of its messages, and how much it is to say.

    ``launch``: of a process that torchrun has started with others.
    """

    messages: Console
    quiet: bool
    verbose: bool
    launch: Launch | None = None

    @property
    def tells(self) -> bool:
        """Whether this process writes and reports."""
        return self.launch is None or self.launch.rank == 0

    def progress(self) -> ProgressDisplay:
        """A display for the callbacks of the library; to be used as a context manager."""
        return ProgressDisplay(self.messages, quiet=self.quiet)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """A context for heavy imports and all work: other libraries keep off stdout, and onnxruntime off stderr."""
        with libraries_print_nothing():
            if not self.verbose:
                import onnxruntime

                onnxruntime.set_default_logger_severity(4)  # what it finds wrong with a model, it raises too
            yield


Body = Callable[..., Outcome]


def command(
    *, summary: str, example: str, json_schema: str | None = None, together: bool = False
) -> Callable[[Body], click.Command]:
    """Make a command of a body ``(frame, **arguments) -> Outcome`` that has its options declared around it.

    ``summary``: its line in the list of commands; its help is the docstring. ``example``: command lines, for the help.
    ``json_schema``: the module whose docstring documents what --json prints; without it there is no --json.
    ``together``: whether processes that torchrun has started do it together, of which the first tells the outcome.
    """

    def decorate(body: Body) -> click.Command:
        @functools.wraps(body)
        def run(*, quiet: bool, verbose: bool, as_json: bool = False, **arguments: Any) -> int:
            if quiet and verbose:
                raise OptionError("--quiet and --verbose contradict each other; give one of them")
            launch = find_launch()
            if launch is not None and not together:
                raise OptionError(
                    f"torchrun has started {launch.size} processes of this command, which works in one; expected "
                    "quantize, or no torchrun, whose variables programs that it starts hand on (env -u "
                    "TORCHELASTIC_RUN_ID pdq-export ...)"
                )
            frame = Frame(messages=Console(stderr=True, emoji=False), quiet=quiet, verbose=verbose, launch=launch)
            if not frame.tells:
                frame = dataclasses.replace(frame, quiet=True)
                be_silent()
                body(frame, **arguments)
                return ExitCode.DONE
            set_up_logging(frame.messages, quiet=quiet, verbose=verbose)
            return _tell(body(frame, **arguments), quiet=quiet, as_json=as_json)

        made = click.command(short_help=summary, epilog=_epilog(example))(run)
        made.params += _common_options(json_schema)
        return made

    return decorate


def _common_options(json_schema: str | None) -> list[click.Option]:
    told = f"Print the result as JSON alone; its schema is in {json_schema}."
    return [
        *([] if json_schema is None else [click.Option(["--json", "as_json"], is_flag=True, help=told)]),
        click.Option(["-q", "--quiet"], is_flag=True, help="Print nothing but warnings and errors."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Log everything, with tracebacks."),
    ]


def _epilog(example: str) -> str:
    lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
    return f"\b\nExample:\n{lines}\n\n{EXIT_CODES}"


def _tell(outcome: Outcome, *, quiet: bool, as_json: bool) -> ExitCode:
    if as_json:
        assert outcome.to_json is not None
        click.echo(outcome.to_json(), nl=False)
    elif not quiet:
        console = Console(highlight=False, emoji=False)  # or a node named a:cat:b would show a cat
        if not console.is_terminal:
            console.width = _WIDE
        for item in outcome.text:
            if isinstance(item, str):
                console.print(printable(item), markup=False, soft_wrap=True)
            else:
                console.print(item)
    for line in outcome.failed_gates if as_json or quiet else ():  # the text has them
        _say(f"gate failed: {line}")
    for line in outcome.errors:
        _say(f"error: {line}")
    if outcome.errors:
        return ExitCode.WRONG_INPUT
    return ExitCode.GATE_FAILED if outcome.failed_gates else ExitCode.DONE


class Program(click.Group):
    """A group of commands that leaves the process with an `ExitCode`."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and leave the process."""
        extra["standalone_mode"] = False
        _print_anything()
        launch = find_launch()
        if launch is not None:
            end_orderly(
                f"rank {launch.rank} of {launch.size}: told to end (SIGTERM), as torchrun does when another "
                f"rank has ended or it is told so itself; {RESUME}"
            )
        try:
            status = super().main(*args, **{"prog_name": PROGRAM, **extra})
            sys.stdout.flush()
        except PdqError as error:
            logger.debug("raised here", exc_info=error)
            _fail(f"error: {error}{_notes(error)}", ExitCode.WRONG_INPUT)
        except click.exceptions.NoArgsIsHelpError as error:  # its message is the help, which is not one line
            click.echo(error.format_message(), err=True)
            sys.exit(ExitCode.WRONG_INPUT)
        except click.ClickException as error:
            _fail(f"error: {_usage(error)}", ExitCode.WRONG_INPUT)
        except (click.Abort, KeyboardInterrupt) as error:
            _fail(f"interrupted{_notes(error)}", ExitCode.INTERRUPTED)
        except ToldToEnd as error:
            _fail(f"error: {error}{_notes(error)}", ExitCode.WRONG_INPUT)
        except SystemExit:  # click's own, where the reader of our output has gone
            sys.exit(_SIGPIPE)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                _leave_quietly()
            if is_exhaustion(error):  # outside of what the library does, which tells it itself
                told = f"error: memory ran out ({type(error).__name__}); end other programs"
                _fail(told, ExitCode.WRONG_INPUT)
            logger.debug("raised here", exc_info=error)
            detail = f"{type(error).__name__}: {error}{_notes(error)}"
            _fail(f"internal error: {detail}; re-run with --verbose for the traceback", ExitCode.INTERNAL)
        sys.exit(status if isinstance(status, int) else ExitCode.DONE)


def _usage(error: click.ClickException) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    message = error.format_message()
    end = "" if message.endswith("?") else "."
    return f"{message.rstrip('.')}{end} See {path} --help" if path else message


def _notes(error: BaseException) -> str:
    """What was noted about an error, or about the Ctrl-C that click made another one of."""
    notes = [*getattr(error, "__notes__", ()), *getattr(error.__cause__, "__notes__", ())]
    told = str(error)
    return "".join(f"; {note}" for note in notes if note not in told)


def _say(message: str) -> None:
    """Print one line, whatever the message holds."""
    click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)


def _fail(message: str, status: ExitCode) -> NoReturn:
    """End with one message, of however many processes that do it together."""
    launch = find_launch()
    if launch is not None:
        end_in_peace()
    if launch is None or _is_first_to_tell(launch):
        _say(message)
    sys.exit(status)


def _is_first_to_tell(launch: Launch) -> bool:
    from pdq_export.ranks.joining import is_first_to_tell

    return is_first_to_tell(launch)


def _print_anything() -> None:
    """A terminal may lack characters that names have; no result shall be lost to that."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave_quietly() -> NoReturn:
    """The reader of our output has gone; without a stdout, Python does not complain about it at exit either."""
    sys.stdout = None
    sys.exit(_SIGPIPE)
