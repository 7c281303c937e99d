"""The frame that all commands share, on toy commands: options, messages, results, exit codes."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rich.table import Table

from pdq_export.cli import app
from pdq_export.cli.command import EXIT_CODES, Frame, Outcome, Program, command
from pdq_export.cli.log import NOTES
from pdq_export.cli.paths import ModelPath
from pdq_export.errors import ModelError

COMMANDS = sorted(app.commands)


def invoke(body: Callable[..., Outcome], *args: str, **options: Any) -> Result:
    """Run a toy command in a program of its own."""
    program = Program(name="pdq-export")
    program.add_command(command(summary="A toy.", example="pdq-export toy", **options)(body), "toy")
    return CliRunner().invoke(program, ["toy", *args])


def found(**changes: Any) -> Outcome:
    table = Table("name", "value")
    table.add_row("accuracy", "0.9")
    return Outcome(text=["measured:\x1b[2J [red] :cat:", table], to_json=lambda: '{"accuracy": 0.9}\n', **changes)


def test_text_is_printed_line_by_line_and_harmless() -> None:
    result = invoke(lambda _: found())
    assert result.exit_code == 0, result.output
    first, *table = result.stdout.splitlines()
    assert first == "measured:\\x1b[2J [red] :cat:"
    assert any("accuracy" in line and "0.9" in line for line in table)
    assert result.stderr == ""


def chatting(_: Frame) -> Outcome:
    NOTES.info("on the way :cat:")
    print("what a library says is no result", file=sys.stderr)
    return found()


@pytest.mark.parametrize("more", [(), ("--quiet",), ("--verbose",)])
def test_json_is_all_there_is_on_stdout(more: tuple[str, ...]) -> None:
    result = invoke(chatting, "--json", *more, json_schema="somewhere")
    assert json.loads(result.stdout) == {"accuracy": 0.9}
    assert ("pdq-export: on the way :cat:" in result.stderr) == ("--quiet" not in more)


def test_quiet_prints_no_result() -> None:
    assert invoke(chatting, "--quiet").stdout == ""


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--quiet",)])
def test_a_gate_that_fails_is_a_result_with_exit_code_1(arguments: tuple[str, ...]) -> None:
    lines = ("top-1 falls by 2.0 points; --max-drop allows 1.0", "size × 0.3; --max-size-ratio allows 0.2")
    result = invoke(lambda _: found(failed_gates=lines), *arguments, json_schema="somewhere")
    assert result.exit_code == 1
    told = [f"pdq-export: gate failed: {line}" for line in lines] if arguments else []  # else the text has them
    assert result.stderr.splitlines() == told
    assert ("accuracy" in result.stdout) == (arguments != ("--quiet",))


def raising(error: BaseException) -> Callable[[Frame], Outcome]:
    def body(_: Frame) -> Outcome:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModelError("m.onnx: is\ndamaged"), 2, "error: m.onnx: is damaged"),
        (click.BadParameter("no"), 2, "error: Invalid value: no. See pdq-export toy --help"),
        (MemoryError(), 2, "error: memory ran out (MemoryError); end other programs"),
        (RuntimeError("oh"), 3, "internal error: RuntimeError: oh; re-run with --verbose for the traceback"),
        (AssertionError(), 3, "internal error: AssertionError: ; re-run with --verbose for the traceback"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(error: Exception, code: int, message: str) -> None:
    result = invoke(raising(error))
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"pdq-export: {message}\n")
    verbose = invoke(raising(error), "--verbose")
    assert verbose.exit_code == code
    assert verbose.stderr.endswith(f"pdq-export: {message}\n")


def test_ctrl_c_tells_what_was_noted() -> None:
    interruption = KeyboardInterrupt()
    interruption.add_note("go on with --resume")
    result = invoke(raising(interruption))
    assert (result.exit_code, result.stderr.strip()) == (130, "pdq-export: interrupted; go on with --resume")


def test_an_error_tells_what_was_noted_once() -> None:
    error = ModelError("no room; kept as here")
    for note in ("kept as here", "go on with --resume"):
        error.add_note(note)
    result = invoke(raising(error))
    told = "pdq-export: error: no room; kept as here; go on with --resume"
    assert (result.exit_code, result.stderr.strip()) == (2, told)


def test_text_that_fails_while_it_is_printed_is_a_bug() -> None:
    def text() -> Iterator[str]:
        yield "first"
        raise KeyError("second")

    result = invoke(lambda _: Outcome(text=text()))
    assert (result.exit_code, result.stdout) == (3, "first\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.onnx", "missing.onnx: no such file; expected a quantized model"),
        (".", ".: is a folder; expected a quantized model"),
        ("n" * 5000, f"{'n' * 5000}: cannot be read: File name too long; expected a quantized model"),
        ("/dev/null", "/dev/null: not a regular file; expected a quantized model"),
    ],
)
def test_a_model_that_is_no_file(folder: Path, name: str, message: str) -> None:
    body = click.argument("model", type=ModelPath("a quantized model"))(lambda _, model: Outcome(text=[str(model)]))
    result = invoke(body, name)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"pdq-export: error: {message}\n")
    assert invoke(body, "model.onnx").stdout == "model.onnx\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_frame(name: str) -> None:
    made = app.commands[name]
    assert {"quiet", "verbose"} <= {parameter.name for parameter in made.params}
    text = CliRunner().invoke(app, [name, "--help"]).stdout
    assert " ".join(EXIT_CODES.split()) in " ".join(text.split())
    assert f"\nExample:\n  pdq-export {name}" in text.replace("\n  Example:\n    ", "\nExample:\n  ")
    assert "--quiet and --verbose contradict" in CliRunner().invoke(app, [name, *_given(made), "-q", "-v"]).stderr


def _given(made: click.Command) -> list[str]:
    """A value for whatever the command requires."""
    here = str(Path(__file__))
    required = [parameter for parameter in made.params if parameter.required]
    return [text for p in required for text in ([here] if isinstance(p, click.Argument) else [p.opts[0], "x"])]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_schema_of_json_is_where_the_help_says(name: str) -> None:
    option = next((p for p in app.commands[name].params if "--json" in p.opts), None)
    if option is None:
        pytest.skip("has no --json")
    assert isinstance(option, click.Option)
    (module,) = [word.rstrip(".") for word in (option.help or "").split() if word.startswith("pdq_export.")]
    assert "schema_version" in (importlib.import_module(module).__doc__ or "")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
def test_a_reader_that_has_gone_is_no_failed_gate(folder: Path) -> None:
    """Neither while the help is written nor at the end; a shell would say the same of `cat`."""
    for arguments in (["--help"], ["example"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "pdq_export", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.close()
        _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (141, b"")


@pytest.fixture
def rank_of_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Be a rank of two that torchrun has started, and leave SIGTERM alone."""
    for name in ("end_orderly", "end_in_peace"):
        monkeypatch.setattr(f"pdq_export.cli.command.{name}", lambda *_: None)
    monkeypatch.delenv("MASTER_PORT", raising=False)

    def be(rank: int) -> None:
        for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "2"), ("RANK", str(rank))):
            monkeypatch.setenv(name, value)

    return be


def test_commands_that_work_in_one_process_are_refused_under_torchrun(rank_of_two: Callable[[int], None]) -> None:
    rank_of_two(0)
    result = invoke(lambda frame: Outcome(text=["done"]))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "torchrun has started 2 processes of this command" in result.stderr


def test_the_first_rank_alone_prints(rank_of_two: Callable[[int], None]) -> None:
    def body(frame: Frame) -> Outcome:
        NOTES.warning("a warning")
        return Outcome(text=["done"], failed_gates=["gate"])

    rank_of_two(1)
    result = invoke(body, together=True)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    rank_of_two(0)
    result = invoke(body, together=True)
    assert (result.exit_code, result.stdout) == (1, "done\n")
    assert "a warning" in result.stderr
