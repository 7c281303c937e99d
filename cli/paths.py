"""Paths on the command line, checked as they are read."""

import os
from pathlib import Path

import click

from pdq_export.errors import ModelError, OptionError
from pdq_export.nearby import near_path


class ModelPath(click.Path):
    """The name of a file to read; ``expected`` says in words what it should be."""

    def __init__(self, expected: str = "an ONNX model") -> None:
        super().__init__()
        self._expected = expected

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Raise ModelError where there is no such file."""
        if not str(value):
            raise ModelError(f"{_name(param)} '': expected {self._expected}")
        path = Path(value)
        try:
            if path.is_file():
                return path
            found = "is a folder" if path.is_dir() else "not a regular file" if path.exists() else "no such file"
            near = near_path(path, ".onnx") if found == "no such file" else ""
        except OSError as error:
            found, near = f"cannot be read: {error.strerror or error}", ""
        raise ModelError(f"{value}: {found}; expected {self._expected}{near}")


class OutputPath(click.Path):
    """The name of a file to write; a folder's, or ``-``, would be taken for one."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check the text as it was typed: a `Path` has no slash at its end any more, and is never empty."""
        if not str(value):
            raise OptionError(f"{_name(param)} '': expected the name of a file to write")
        if str(value).endswith(("/", os.sep)):
            raise OptionError(f"{value}: is a folder; expected the name of a file to write")
        if str(value) == "-":
            raise OptionError("-: nothing is written to the standard output; expected the name of a file to write")
        return Path(value)


class ConfigPath(click.Path):
    """The name of a file of options, which is checked where it is read."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Raise OptionError for no name at all, which would be that of the current folder."""
        if not str(value):
            raise OptionError(f"{_name(param)} '': expected the name of a TOML file")
        return Path(value)


def _name(param: click.Parameter | None) -> str:
    if param is None:
        return "path"
    return max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name
