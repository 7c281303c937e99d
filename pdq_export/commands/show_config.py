"""`show_config`: the options that made a file, as TOML, from its metadata."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx

from pdq_export.config.config import options_of
from pdq_export.config.record import Record, read_record
from pdq_export.config.toml import write_toml
from pdq_export.errors import ModelError
from pdq_export.graph.load import in_memory, read_structure
from pdq_export.graph.lookup import opset_version


def show_config(model: str | Path | onnx.ModelProto) -> str:
    """The options that a file was quantized with, as a TOML file for ``quantize --config``.

    What was given is set, and the device that was used; the rest of what the metadata holds are comments with what the
    options were then. What has no influence on the file, such as ``output``, is not there. Raises ModelError for a
    file that says nothing of its making, OptionError for options that TOML cannot say.
    """
    where = "model" if isinstance(model, onnx.ModelProto) else str(model)
    file = read_structure(model) if isinstance(model, str | Path) else in_memory(model)
    record = read_record({entry.key: entry.value for entry in file.metadata_props}, where)
    used = {**_known(record.settled), "opset": opset_version(file)}
    device = {name: value for name, value in _known(record.made_by).items() if name == "device"}
    try:
        head = list(_head(record, Path(where).name))
        return write_toml({**record.asked, **device}, head=head, used=used, explain=False, recorded=True)
    except RecursionError as error:
        raise ModelError(f"{where}: its metadata is nested too deeply; expected it as pdq-export wrote it") from error


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are values of options."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    options = options_of()
    return {name: value for name, value in plain.items() if name in options and options[name].accepts(value)}


def _head(record: Record, name: str) -> Iterable[str]:
    """Names and versions as JSON texts: they come from a file and may hold anything."""
    yield f"What made {json.dumps(name)}, as its metadata says; what is commented out was used without being asked for."
    made_by = record.made_by
    if isinstance(allotment := record.settled.get("tensor_bits"), dict):  # of files from before there was an option
        yield f"NOT in these options: bits that a Python caller gave to single tensors, {json.dumps(allotment)}"
    yield f"versions: {json.dumps(made_by.get('versions', {'pdq-export': record.version}))}"
    for what in ("model", "calibration", "device", "threads"):
        if what in made_by:
            yield f"{what}: {json.dumps(made_by[what])}"
    if not made_by:
        yield "The file was written before files said which model, data and device they were made of."
