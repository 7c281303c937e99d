"""Read an ONNX file: everything in it is checked before it is relied on."""

import codecs
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from pdq_export.errors import ModelError
from pdq_export.graph import checks
from pdq_export.graph.external import all_tensors, external_locations, load_external_data
from pdq_export.graph.messages import essential_line
from pdq_export.graph.sizes import check_tensor_sizes
from pdq_export.graph.tensors import LIMIT, check_size
from pdq_export.nearby import near_path


def load_model(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data and check that it is a valid float model of a supported opset.

    Raises ModelError if the file cannot be read, is damaged or is not ONNX, if the model is invalid or already
    quantized, and if a weight is not finite. The message starts with the path.
    """
    path = Path(path)
    model = read_model(path)
    try:
        return check_model(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def read_model(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file of a supported opset with its external data; it may be quantized.

    Raises ModelError if that is not possible.
    """
    path = Path(path)
    try:
        model = _parse(_read(path))
        checks.check_opset(model)
        load_external_data(model, path.parent)
        return model
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def read_structure(path: str | Path) -> onnx.ModelProto:
    """Read graph and metadata of an ONNX file, without its external data and unchecked.

    Raises ModelError if that is not possible.
    """
    path = Path(path)
    try:
        return _parse(_read(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def external_files(path: str | Path) -> list[Path]:
    """The files that hold the external data of an ONNX file, as it names them; none if it cannot be read."""
    path = Path(path)
    try:
        model = _parse(_read(path))
    except ModelError:
        return []
    return [path.parent / location for location in external_locations(model)]


def check_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Check a model in memory as `load_model` does and return it. Raises ModelError."""
    checks.check_opset(in_memory(model))
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise ModelError(f"tensor {name!r}: is sparse; expected dense weights; export the model again")
    for tensor in all_tensors(model.graph):
        check_size(tensor)
    _check_valid(model)
    checks.check_not_quantized(model)
    checks.check_finite(model)
    check_tensor_sizes(model)
    return model


def in_memory(model: object) -> onnx.ModelProto:
    """Return the argument. Raises ModelError if it is no model."""
    if not isinstance(model, onnx.ModelProto):
        raise ModelError(f"{type(model).__name__} given as model; expected a path or an onnx.ModelProto")
    return model


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError("is a directory; expected an ONNX file; give the path of the .onnx file in it")
    try:
        if not path.is_file():
            raise ModelError(f"no such file; expected an ONNX file{near_path(path, '.onnx') or '; check the path'}")
        if path.stat().st_size > LIMIT:
            raise ModelError("is larger than 2 GiB; expected less; export with external data")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot be read ({reason}); expected a readable file; check its permissions") from error
    if not data:
        raise ModelError("is empty; expected an ONNX file; copy or export it again")
    return data


_OF_ZIP = b"PK\x03\x04"
_OF_PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))
_HEAD = 1024  # bytes


def _parse(data: bytes) -> onnx.ModelProto:
    if data.startswith(_OF_PICKLE) or (data.startswith(_OF_ZIP) and b"/data.pkl" in data[:_HEAD]):
        raise ModelError(
            "is a checkpoint of PyTorch; expected an ONNX file; export the module with torch.onnx.export "
            "(docs/pytorch.md shows how), and give what that wrote"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        if _is_text(data):
            begins = data[:_HEAD].decode("utf-8-sig", "replace").strip().partition("\n")[0][:30]
            raise ModelError(
                f"is not an ONNX file: it is text that begins with {begins!r}; expected a protobuf, as exporters write "
                "it; export the model again, or name its file"
            ) from error
        raise ModelError(
            "is not an ONNX protobuf, or truncated or damaged; expected an ONNX file; copy it again"
        ) from error
    if not model.HasField("graph"):
        raise ModelError("holds no graph; expected an ONNX model; it may be truncated: copy or export it again")
    if not model.graph.node:
        raise ModelError("its graph has no nodes; expected a network; export the model again")
    return model


def _is_text(data: bytes) -> bool:
    try:
        head = codecs.getincrementaldecoder("utf-8-sig")().decode(data[:1024])
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in head)


def _check_valid(model: onnx.ModelProto) -> None:
    if model.ByteSize() > LIMIT:
        raise ModelError("model: is larger than 2 GiB with its weights; expected less; use a smaller model")
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, RuntimeError, ValueError, ...
        raise ModelError(
            f"model: is not valid ONNX ({essential_line(error)}); expected what onnx.checker accepts; "
            "export the model again"
        ) from error
