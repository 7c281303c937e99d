"""`init`: a TOML file with every option of a run, explained, for a model."""

import dataclasses
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

import onnx

from pdq_export.config.method import choose_options
from pdq_export.config.toml import write_toml
from pdq_export.graph.load import read_structure


def init(model: str | Path) -> str:
    """A TOML file for ``quantize --config``: every option with its help, choices, unit and default, commented out.

    Raises ModelError for a file that is no ONNX model.
    """
    path = Path(model)
    file = read_structure(path)
    return write_toml({}, head=_head(path, file), used=dataclasses.asdict(choose_options()))


def _head(path: Path, file: onnx.ModelProto) -> Iterable[str]:
    yield f"Options of pdq-export for {json.dumps(path.name)}. Use them with"
    yield f"  pdq-export quantize {_one_line(shlex.quote(str(path)))} --config THIS_FILE"
    yield ""
    yield "What is commented out is the default; where that depends on preset, method or network, what it is for"
    yield 'preset "balanced", method "pdq" and a plain network. The command line wins over this file. Paths are'
    yield "relative to the folder that the command runs in."
    yield ""
    constants = {tensor.name for tensor in file.graph.initializer}
    inputs = [json.dumps(value.name) for value in file.graph.input if value.name not in constants]
    outputs = [json.dumps(value.name) for value in file.graph.output]
    yield f"inputs: {', '.join(inputs)}; outputs: {', '.join(outputs)}"


def _one_line(text: str) -> str:
    """A comment ends with its line, and has only what can be seen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
