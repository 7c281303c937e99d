"""External data: weights in files next to the model. Paths and sizes come from the model: trust none."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import GraphProto, TensorProto

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import subgraphs
from pdq_export.graph.tensors import byte_size


def load_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Read every external tensor of ``model`` into it; the files must lie in ``folder`` or below it.

    Sizes are compared before anything is read. Raises ModelError for a path out of the folder, a missing file and
    an offset or length that does not fit.
    """
    for tensor in all_tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            _load(tensor, folder)


def external_locations(model: onnx.ModelProto) -> list[str]:
    """The locations of external data, each once, as the model has them: unchecked."""
    entries = (
        entry
        for tensor in all_tensors(model.graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
    )
    return list(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor stored in a graph: initializers, attributes, and those of subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for subgraph in subgraphs(node):
            yield from all_tensors(subgraph)


def _load(tensor: TensorProto, folder: Path) -> None:
    where = f"tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _data_file(where, entries.get("location", ""), folder)
    offset = _number(where, "offset", entries.get("offset", "0"))
    expected = byte_size(tensor, where)
    length = _number(where, "length", entries["length"]) if "length" in entries else expected
    if length != expected:
        raise ModelError(
            f"{where}: external data has length {length}; expected {expected} bytes for dims "
            f"{list(tensor.dims)}; the file is damaged: export the model again"
        )
    available = path.stat().st_size
    if offset + length > available:
        raise ModelError(
            f"{where}: external data ends at byte {offset + length}, but {path} has {available} bytes; "
            "expected the data file written together with the model; copy it again"
        )
    try:
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except OSError as error:
        raise ModelError(f"{where}: {path} cannot be read ({error.strerror}); check its permissions") from error
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _data_file(where: str, location: str, folder: Path) -> Path:
    """The file that ``location`` names, a regular one inside ``folder`` also after links are followed."""
    parts = PureWindowsPath(location).parts  # splits at / and \ alike
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if not location or "\0" in location or absolute or ".." in parts:
        raise ModelError(
            f"{where}: external data lies at {location[:100]!r}; expected a path below the model's folder, "
            "without '..'; save the model with its data next to it"
        )
    path = folder.joinpath(*PurePosixPath(location).parts)
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{where}: external data file {str(path)[:300]} is missing; expected it next to the model; copy both files"
        ) from error
    if not resolved.is_relative_to(folder.resolve()):
        raise ModelError(
            f"{where}: external data file {path} is a link out of the model's folder; expected a file "
            "inside it; copy the data next to the model"
        )
    if not resolved.is_file():
        raise ModelError(f"{where}: external data {path} is not a regular file; expected one; copy it again")
    return resolved


def _number(where: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ModelError(f"{where}: external data has {key} {text[:40]!r}; expected a number of bytes; export again")
    return int(text)
