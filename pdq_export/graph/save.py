"""Write an ONNX file, in one piece or with its weights in a second one."""

from pathlib import Path

import onnx
from onnx import TensorProto

from pdq_export.files import check_writable, write_together
from pdq_export.graph.external import all_tensors
from pdq_export.graph.load import external_files
from pdq_export.graph.tensors import LIMIT

SUFFIX = ".data"
_SMALLEST = 1024  # bytes; smaller tensors may be shapes, which a reader wants in the model
_ALIGNMENT = 4096  # so that a runtime can map each tensor


def check_output(
    path: str | Path,
    *,
    overwrite: bool = False,
    model: str | Path | None = None,
    inputs: tuple[str | Path, ...] = (),
    external: bool = False,
) -> None:
    """Make sure that `save_model` will be able to write ``path``, and with ``external`` ``path.data``.

    Neither may be one of the ``inputs``, ``model``, or a file that holds the external data of ``model``. Raises
    OptionError.
    """
    read = [*inputs, *([] if model is None else [model, *external_files(model)])]
    for written in (path, *([data_path(path)] if external else [])):
        check_writable(written, overwrite=overwrite, inputs=read)


def save_model(path: str | Path, model: onnx.ModelProto, *, external: bool = False) -> dict[Path, bytes]:
    """Write a model atomically and return the files and their content, the model first; equal models, equal bytes.

    With ``external``, or over 2 GB, tensors of 1 kB and more go to ``path.data``, which the model names by its base
    name; both files appear together. Without such tensors there is no second file. Raises OptionError where they
    cannot be written.
    """
    path = Path(path)
    if not external and model.ByteSize() <= LIMIT:
        files = {path: model.SerializeToString(deterministic=True)}
    else:
        content, data = split(model, data_path(path).name)
        files = {path: content, **({data_path(path): data} if data else {})}
    write_together(dict(reversed(files.items())))  # the model last, as it names the other
    return files


def data_path(path: str | Path) -> Path:
    """Where the external data of ``path`` go: beside it, ``.data`` after its name."""
    path = Path(path)
    return path.with_name(path.name + SUFFIX)


def split(model: onnx.ModelProto, location: str) -> tuple[bytes, bytes]:
    """The bytes of the model and of its external data, to be written as ``location`` beside it."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    data = bytearray()
    for tensor in all_tensors(light.graph):
        if not tensor.HasField("raw_data") or len(tensor.raw_data) < _SMALLEST:
            continue
        data.extend(bytes(-len(data) % _ALIGNMENT))
        entries = {"location": location, "offset": str(len(data)), "length": str(len(tensor.raw_data))}
        data.extend(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())
    return light.SerializeToString(deterministic=True), bytes(data)
