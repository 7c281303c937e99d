"""Write an ONNX file, in one piece or with its weights in a second one."""

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import TensorProto

from pdq_export.errors import OptionError
from pdq_export.files import check_targets, write_together
from pdq_export.graph.external import all_tensors
from pdq_export.graph.load import external_files
from pdq_export.graph.tensors import LIMIT

SUFFIX = ".data"
_SMALLEST = 1024  # bytes; smaller tensors may be shapes, which a reader wants in the model
_ALIGNMENT = 4096  # so that a runtime can map each tensor


def check_output(
    path: str | Path | None,
    *,
    overwrite: bool = False,
    model: str | Path | None = None,
    inputs: tuple[str | Path, ...] = (),
    external: bool = False,
    beside: Iterable[tuple[str, Path]] = (),
) -> None:
    """Make sure that ``path``, with ``external`` also ``path.data``, and what is written ``beside`` it can be written.

    ``beside``: each with the option that asks for it, and to be a file of its own. Raises OptionError if that is not
    so, or if one of them is among ``inputs``, is ``model``, or holds external data of ``model``.
    """
    beside = list(beside)
    # Weights go to a second file too where one is not enough, which only shows at the end.
    written = [] if path is None else [Path(path), *([data_path(path)] if Path(path).name else [])]
    read = [*inputs, *([] if model is None else [model])]
    targets = [*(("--output", file) for file in written[: 2 if external else 1]), *beside]
    if (
        model is not None and overwrite and any(file.exists() for _, file in targets)
    ):  # what exists is refused otherwise
        read += external_files(model)  # which parses the model
    if external and path is not None and not _is_unicode(data_path(path).name):
        raise OptionError(
            f"{path}: its name is not UTF-8, so that a model cannot name the file of its weights; expected a UTF-8 "
            "name with --external-data; choose another name"
        )
    for option, file in beside:
        if file.resolve() in [other.resolve() for other in written]:
            raise OptionError(f"{file}: is both {option} and --output; expected two files")
    check_targets(targets, overwrite=overwrite, inputs=read)


def save_model(
    path: str | Path, model: onnx.ModelProto, *, external: bool = False, overwrite: bool = False
) -> dict[Path, bytes]:
    """Write the `model_files` atomically, all or none, and return them.

    Raises OptionError if they cannot be written, or if one exists and ``overwrite`` is not set.
    """
    files = model_files(path, model, external=external)
    write_together(in_order(files), overwrite=overwrite)
    return files


def model_files(path: str | Path, model: onnx.ModelProto, *, external: bool = False) -> dict[Path, bytes]:
    """The files that a model is written to and their content, the model first; equal models give equal bytes.

    With ``external``, or over 2 GB, tensors of 1 kB and more go to ``path.data``, which the model names by its base
    name. Without such tensors there is no second file.
    """
    path = Path(path)
    if not external and model.ByteSize() <= LIMIT:
        return {path: model.SerializeToString(deterministic=True)}
    content, data = split(model, data_path(path).name)
    return {path: content, **({data_path(path): data} if data else {})}


def in_order(files: dict[Path, bytes]) -> dict[Path, bytes]:
    """`model_files` in the order in which they may appear: the model last, because it names the other."""
    return dict(reversed(files.items()))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of no encoding, which Python keeps as lone surrogates
        return False
    return True


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
