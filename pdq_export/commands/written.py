"""What a command writes beside a model, and what it must not replace. Imports nothing heavy: it is checked first."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pdq_export.config.config import Config
from pdq_export.config.sections import AUTO
from pdq_export.data import names_function
from pdq_export.data.function import user_function
from pdq_export.errors import OptionError
from pdq_export.graph.save import check_output
from pdq_export.search.bits_file import is_edited
from pdq_export.user_code import UserFunction

_MODEL = ".onnx"
_PAGES = (".html", ".htm")


def side_files(config: Config) -> list[tuple[str, Path]]:
    """What is to be written beside a model, each with its option."""
    asked = [("--junit", config.gates.junit), ("--markdown", config.gates.markdown)]
    reports = [("--report", path) for path in config.file.report]
    return [(option, Path(path)) for option, path in (*reports, *asked) if path is not None]


def is_page(path: Path) -> bool:
    """Whether a report of this name is a page for a browser."""
    return path.suffix.lower() in _PAGES


def asks_page(config: Config) -> bool:
    """Whether a page for a browser is to be written."""
    return any(is_page(Path(path)) for path in config.file.report)


def bits_path(config: Config) -> Path | None:
    """Where bits of layers are to be written, if at all: beside the output, where they are yet to be found."""
    if config.search.bits_to is not None:
        return Path(config.search.bits_to)
    if config.plan.bits == AUTO and config.file.output is not None:
        return Path(config.file.output).with_suffix(".bits.toml")
    return None


def check_written(
    config: Config, *, model: Any = None, data: Iterable[Any] = (), others: Iterable[Any] = (), makes_model: bool
) -> None:
    """Raise OptionError for a file that cannot be written, or that would replace what the command reads.

    That is ``model`` with its external data, ``data``, files and whole folders, the modules of functions that options
    name, and ``others``, such as the file of the configuration; what is no path is left out. ``makes_model``: whether
    the command writes --output.
    """
    data = list(data)
    functions = [
        *(user_function(source) for source in data if isinstance(source, str) and names_function(source)),
        *(metric_function(text) for text in config.gates.metric),
    ]
    read = [source for source in data if not names_function(source)] + list(others)
    beside = side_files(config)
    if makes_model and (path := bits_path(config)) is not None:
        beside.append(("--bits-to", path))
        if config.file.overwrite and config.search.bits_to is None and path.exists() and is_edited(path):
            raise OptionError(
                f"{path}: was edited since --bits auto wrote it, and --overwrite would replace it by the bits that are "
                f"found now; take those that it has with --bits-from {shlex.quote(str(path))}, name the file of the "
                "new ones with --bits-to, or move this one away"
            )
    if makes_model and config.search.bits_from is not None:
        read.append(config.search.bits_from)
    check_output(
        config.file.output if makes_model else None,
        overwrite=config.file.overwrite,
        model=model if isinstance(model, str | Path) else None,
        inputs=(
            *(path for path in read if isinstance(path, str | Path)),
            *(file for function in functions for file in function.files()),
        ),
        external=config.file.external_data,
        beside=beside,
    )
    output = Path(config.file.output) if makes_model and config.file.output is not None else None
    if output is not None and output.suffix.lower() != _MODEL:
        raise OptionError(
            f"--output {output}: what is written is an ONNX file; expected a name that ends in {_MODEL}, such as "
            f"{output.stem}{_MODEL}"
        )


def metric_function(text: str) -> UserFunction:
    """The function that --metric names."""
    return UserFunction(
        source=text,
        error=OptionError,
        kind="a function of outputs and labels",
        expected="expected MODULE:FUNCTION, such as metrics:mean_iou of a metrics.py in the current folder",
        begins="--metric ",
    )
