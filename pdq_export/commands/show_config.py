"""`show_config`: the options that made a file, as TOML, from its metadata."""

import json
from collections.abc import Iterable
from pathlib import Path

import onnx

from pdq_export.config.record import Record, read_record
from pdq_export.config.toml import write_toml
from pdq_export.graph.load import in_memory, read_structure


def show_config(model: str | Path | onnx.ModelProto) -> str:
    """The options that a file was quantized with, as a TOML file for ``quantize --config``.

    What was given is set; the rest are comments with what the options were then. ``output``, ``report`` and what else
    has no influence on the file are not in its metadata. Raises ModelError for a file that says nothing of its making.
    """
    where = "model" if isinstance(model, onnx.ModelProto) else str(model)
    file = read_structure(model) if isinstance(model, str | Path) else in_memory(model)
    record = read_record({entry.key: entry.value for entry in file.metadata_props}, where)
    return write_toml(record.asked, head=_head(record, Path(where).name), used=record.settled, explain=False)


def _head(record: Record, name: str) -> Iterable[str]:
    """Names and versions as JSON texts: they come from a file and may hold anything."""
    yield f"What made {json.dumps(name)}, as its metadata says; what is commented out was not asked for, but used."
    made_by = record.made_by
    if allotment := record.settled.get("tensor_bits"):
        yield f"NOT in these options: bits that a Python caller gave to single tensors, {json.dumps(allotment)}"
    yield f"versions: {json.dumps(made_by.get('versions', {'pdq-export': record.version}))}"
    for what in ("model", "calibration", "device", "threads"):
        if what in made_by:
            yield f"{what}: {json.dumps(made_by[what])}"
    if not made_by:
        yield "The file was written before files said which model, data and device they were made of."
