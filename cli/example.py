"""``pdq-export example``: the embedded model and images, as files to look at and to quantize."""

import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import click

from pdq_export.errors import OptionError
from pdq_export.files import check_writable, write_atomically

from .command import Frame, Outcome, command

FOLDER = "calib_data"


@command(summary="Copy the embedded model and images here.", example="pdq-export example")
@click.argument("directory", default=".", type=click.Path(path_type=Path))
def example(_: Frame, *, directory: Path) -> Outcome:
    """Copy the embedded model, calibration and evaluation images to DIRECTORY/calib_data.

    DIRECTORY is the current folder by default. Files that exist are never replaced.
    """
    package = resources.files("pdq_export.calib_data")
    files = sorted((f for f in package.iterdir() if _is_data(f.name)), key=lambda f: f.name)
    folder = directory / FOLDER
    for file in files:
        if os.path.lexists(folder / file.name):
            raise OptionError(f"{folder / file.name}: exists already; choose another folder: pdq-export example DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{folder}: cannot be created: {error.strerror}; choose another folder") from error
    for file in files:
        check_writable(folder / file.name)
    for file in files:
        write_atomically(folder / file.name, file.read_bytes())
    return Outcome(text=_lines(directory, [file.name for file in files]))


def _is_data(name: str) -> bool:
    return name.endswith((".onnx", ".npz")) or name == "README.md"


def _lines(directory: Path, names: Sequence[str]) -> Iterable[str]:
    yield from (str(directory / FOLDER / name) for name in names)
    model = next((name for name in names if name.endswith(".onnx")), "MODEL.onnx")
    change = "" if directory == Path() else f"cd {directory} && "
    yield from ("", "Next:", f"  {change}pdq-export quantize {FOLDER}/{model} --bits 4/8")
