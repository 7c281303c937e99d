"""External data: weights in files next to the model. Paths and sizes come from the model: trust none."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import subgraphs
from pdq_export.graph.tensors import LIMIT, byte_size

# Tensors may share bytes of a data file, as tied weights do. A few bytes read again and again fill the memory, though:
# beyond the first number, all tensors together may have so many times the bytes that their files have.
_SHARED_FREELY, _MOST_SHARED = 2**28, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """Where the data of ``tensor`` lie: ``size`` bytes from ``offset`` on."""

    tensor: TensorProto
    path: Path
    offset: int
    size: int


def load_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Read every external tensor of ``model`` into it.

    The files must lie in ``folder`` or below it. Sizes are compared and added up before anything is read. Raises
    ModelError for a path out of the folder, for a missing file, for an offset or a length that does not fit, and for
    more bytes than a model can have or its files hold.
    """
    pieces = [_locate(tensor, folder) for tensor in _external_tensors(model)]
    _check_names(pieces, folder)
    _check_total(pieces)
    for piece in pieces:
        _read(piece)


def external_locations(model: onnx.ModelProto) -> list[str]:
    """The locations of external data as the model names them, each once, unchecked."""
    entries = (entry for tensor in _external_tensors(model) for entry in tensor.external_data)
    return list(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor stored in a graph: initializers, attributes, and those of subgraphs."""
    yield from graph.initializer
    yield from _tensors_of(graph.node)


def _tensors_of(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for subgraph in subgraphs(node):
            yield from all_tensors(subgraph)


def _external_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Those of the graph and of the model's functions."""
    yield from (t for t in all_tensors(model.graph) if t.data_location == TensorProto.EXTERNAL)
    for function in model.functions:
        yield from (t for t in _tensors_of(function.node) if t.data_location == TensorProto.EXTERNAL)


def _locate(tensor: TensorProto, folder: Path) -> _Piece:
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
    return _Piece(tensor=tensor, path=path, offset=offset, size=length)


def _check_total(pieces: Iterable[_Piece]) -> None:
    """Raise ModelError where all tensors together are larger than a model can be, or than their files account for."""
    pieces = list(pieces)
    total = sum(piece.size for piece in pieces)
    if total > LIMIT:
        raise ModelError("is larger than 2 GiB with its weights; expected less; use a smaller model")
    stored = sum(path.stat().st_size for path in {piece.path for piece in pieces})
    if total > max(_SHARED_FREELY, _MOST_SHARED * stored):
        raise ModelError(
            f"{len(pieces)} tensors read {total:,} bytes of external data from files of {stored:,}: many of them the "
            "same bytes; expected tensors with data of their own; save the model again with "
            "onnx.save_model(model, path, save_as_external_data=True)"
        )


def _read(piece: _Piece) -> None:
    tensor = piece.tensor
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.offset)
            tensor.raw_data = file.read(piece.size)
    except OSError as error:
        raise ModelError(
            f"tensor {tensor.name!r}: {piece.path} cannot be read ({error.strerror}); check its permissions"
        ) from error
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


def _check_names(pieces: Iterable[_Piece], folder: Path) -> None:
    """Raise ModelError where a file has names (hard links) that are not below ``folder``: it may be anybody's.

    An archive can bring either kind of link to a file that is not its own, whose content a result would then carry on.
    The folder is walked once for all files, and only as far as their names lie.
    """
    first: dict[tuple[int, int], _Piece] = {}
    unseen: dict[tuple[int, int], int] = {}
    for piece in {piece.path: piece for piece in reversed(list(pieces))}.values():
        status = piece.path.stat()
        if status.st_nlink > 1:
            key = status.st_dev, status.st_ino
            first[key], unseen[key] = piece, status.st_nlink
    walk = os.walk(folder)
    while unseen and (step := next(walk, None)) is not None:
        for name in step[2]:
            found = _identity(Path(step[0], name))
            if found in unseen:
                unseen[found] -= 1
                if not unseen[found]:
                    del unseen[found]
    for key in unseen:
        piece = first[key]
        raise ModelError(
            f"tensor {piece.tensor.name!r}: external data file {piece.path} has another name out of the model's "
            "folder, a hard link; expected a file of its own; copy the folder, or the data file under its name"
        )


def _identity(file: Path) -> tuple[int, int] | None:
    """What all names of a file share; of a symbolic link, its own. None where there is nothing any more."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _number(where: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ModelError(f"{where}: external data has {key} {text[:40]!r}; expected a number of bytes; export again")
    return int(text)
