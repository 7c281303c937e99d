"""What pages list is what there is: commands, exit codes, errors, public names."""

import inspect
import re
from pathlib import Path

import pdq_export
from pdq_export import errors
from pdq_export.cli import app
from pdq_export.cli.command import ExitCode

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page: str, head: str) -> dict[str, str]:
    """The first two columns of the table that begins so."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text[text.index(f"| {head} |") :].split("\n\n")[0]
    cells = [[cell.strip(" `") for cell in line.strip("|").split(" |")] for line in table.splitlines()[2:]]
    return {name: meaning for name, meaning, *_ in cells}


def test_commands() -> None:
    told = rows("commands.md", "command")
    assert told == {f"pdq-export {name}": one.short_help for name, one in app.commands.items()}


def test_exit_codes() -> None:
    assert list(rows("commands.md", "code")) == [str(int(code)) for code in ExitCode]


def test_errors() -> None:
    told = rows("errors.md", "class")
    found = {
        name: inspect.cleandoc(one.__doc__ or "").split(";")[0].split("\n\n")[0]
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, errors.PdqError) and one is not errors.PdqError
    }
    assert {name: meaning.rstrip(".") for name, meaning in told.items()} == {
        name: meaning.rstrip(".") for name, meaning in found.items()
    }


def test_public_names() -> None:
    told = re.findall(r"^::: pdq_export\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(name for name in pdq_export.__all__ if name != "__version__")
