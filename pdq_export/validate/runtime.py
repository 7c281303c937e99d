"""Runs ONNX files in onnxruntime on the CPU, and counts which kernels it chose."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from pdq_export.errors import ValidationError
from pdq_export.leftovers import temporary_folder
from pdq_export.validate.kernels import KernelCount, count_layers

logger = logging.getLogger(__name__)

Batch = NDArray[np.float32] | tuple[NDArray[np.float32], ...]
Outputs = Sequence[NDArray[np.float32]]

PROVIDERS = ["CPUExecutionProvider"]
_FATAL_ONLY = 4
_NUMBERS: Mapping[str, type[np.generic]] = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    **{f"tensor({t.__name__})": t for t in (np.int8, np.int16, np.int32, np.int64)},
    **{f"tensor({t.__name__})": t for t in (np.uint8, np.uint16, np.uint32, np.uint64)},
}
_LONGEST_MESSAGE = 400

# onnxruntime's QDQ fusions know types below 8 bits only in part and leave invalid graphs; without them it runs in
# float.
WITHOUT_FUSION: Mapping[str, str] = {"session.disable_quant_qdq": "1"}
# Before, the memory of a 4-bit tensor is used again for one of 8 bits: wrong values, or a crash.
_REUSES_MEMORY_OF_NARROW = (1, 31)
_NARROW = frozenset([TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output as onnxruntime tells it: ``kind`` is its type, such as tensor(float).

    ``shape``: None where its rank is unknown or 0, with None for axes that are free.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...] | None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type of its numbers, None where numpy has none for it, or where it is no tensor."""
        return np.dtype(_NUMBERS[self.kind]) if self.kind in _NUMBERS else None

    def __str__(self) -> str:
        shape = "" if self.shape is None else " " + " x ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name!r} ({self.kind}{shape})"


class Session:
    """A model in onnxruntime on the CPU, with default session options and ``config``; idle threads do not spin.

    ``model``: bytes or a path. ``config``: see `needed_config`. ``threads``: of one operator; None lets onnxruntime
    choose. Without ``optimize`` the graph is run as it is written; ``optimized_path``: where the graph that is run is
    written as well. ``outputs``: the graph's, those that are tensors. Raises ValidationError where onnxruntime refuses
    the model. ``takes``, ``gives``: its inputs and outputs as the file has them.
    """

    def __init__(
        self,
        model: bytes | str | Path,
        *,
        threads: int | None = None,
        config: Mapping[str, str] | None = None,
        optimize: bool = True,
        optimized_path: str | None = None,
    ) -> None:
        options = _options(threads, config)
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized_path is not None:
            options.optimized_model_filepath = optimized_path
        self.config = dict(config or {})
        self._session = _load(model, options)
        self.takes, self.gives = (
            tuple(map(_value, values)) for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        self.inputs = tuple(value.name for value in self.takes)
        self.outputs = self._fetched = tuple(v.name for v in self.gives if v.kind.startswith("tensor("))

    def rename(self, inputs: Iterable[str], outputs: Mapping[str, str]) -> None:
        """Take batches in this order of ``inputs``, and give those ``outputs`` alone, under the names that they get."""
        self.inputs = tuple(inputs)
        self.outputs, self._fetched = tuple(outputs.values()), tuple(outputs)

    def run(self, batch: Batch) -> list[NDArray[np.float32]]:
        """All outputs for one batch, given in the inputs' types; a tuple is one array for each input.

        Raises ValidationError where onnxruntime fails on it, and for numbers that an input of integers does not take.
        """
        return self.run_fed(self.feed(batch))

    def feed(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """A batch as onnxruntime takes it: by name, in the inputs' types; see `run` for what is refused."""
        arrays = batch if isinstance(batch, tuple) else (batch,)
        by_name = {value.name: value for value in self.takes}
        return {name: _typed(array, by_name[name]) for name, array in zip(self.inputs, arrays, strict=True)}

    def run_fed(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """What `run` does, on a batch that `feed` has prepared."""
        try:
            results = self._session.run(self._fetched, feed)[: len(self._fetched)]  # all, where none is asked for
            return [np.asarray(output) for output in results]
        except Exception as error:  # onnxruntime's errors share no base class
            shapes = ", ".join(str(list(array.shape)) for array in feed.values())
            raise ValidationError(f"onnxruntime fails on a batch of shape {shapes}: {_shorten(error)}") from error

    def run_by_name(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """All outputs for one batch by name; see `run`."""
        return dict(zip(self.outputs, self.run(batch), strict=True))

    def run_batches(self, batches: Iterable[Batch]) -> Iterator[list[NDArray[np.float32]]]:
        """All outputs for each batch, one batch at a time."""
        return (self.run(batch) for batch in batches)


def _value(given: Any) -> Value:
    shape = tuple(size if isinstance(size, int) else None for size in given.shape) if given.shape else None
    return Value(name=given.name, kind=given.type, shape=shape)


def _typed(array: NDArray[np.float32], value: Value) -> NDArray[Any]:
    dtype = value.dtype or np.dtype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves float16 is infinite
        typed = array.astype(dtype, copy=False)
        if dtype.kind != "f" and not np.array_equal(typed.astype(np.float64), array):
            raise ValidationError(
                f"input {value}: the data have {array.min():g} to {array.max():g}, and numbers that {dtype} does not "
                "hold; expected whole numbers in its range; store the data as the model wants them, as float32"
            )
    return typed


def batch_size(batch: Batch) -> int:
    """How many samples a batch has."""
    return len(batch[0]) if isinstance(batch, tuple) else len(batch)


def with_outputs(model: bytes, names: Iterable[str]) -> bytes:
    """The model with the tensors of these names among its outputs, behind its own; itself where it has them all."""
    changed = onnx.load_model_from_string(model)
    own = {value.name for value in changed.graph.output}
    others = [name for name in names if name not in own]
    if not others:
        return model
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in others)
    return bytes(changed.SerializeToString())


def open_session(
    model: bytes | str | Path, *, threads: int | None = None, optimized_path: str | None = None
) -> Session:
    """A session of ``model``, bytes or a path, with the options that it needs: none, or `WITHOUT_FUSION`.

    The latter only where QuantizeLinear or DequantizeLinear have a type below 8 bits. Raises ValidationError where
    onnxruntime does not load the model at all.
    """
    try:
        return Session(model, threads=threads, optimized_path=optimized_path)
    except ValidationError:
        if not _quantizes_below_8_bits(model):
            raise
        return Session(model, threads=threads, config=WITHOUT_FUSION, optimized_path=optimized_path)


def check_runs_quantized(content: bytes, batch: Batch | None) -> None:
    """Load a written file, and run it on ``batch`` if there is one. Raises ValidationError where that fails."""
    session = open_session(content)
    if batch is not None:
        session.run(batch)


def needed_config(model: bytes | str | Path) -> Mapping[str, str]:
    """The session options that onnxruntime needs to load ``model``; see `open_session`. Raises the same."""
    return open_session(model).config


@functools.cache
def kernels_saturate() -> bool:
    """Whether onnxruntime's kernels saturate on 8-bit activations and weights, as on x86 processors without VNNI."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    saturation (uint8[1,64] x, float s, uint8 zx, int8[64,16] w, int8 zw, float sy) => (uint8[1,16] y) {
        y = QLinearMatMul(x, s, zx, w, s, zw, sy, zx)
    }"""
    expected = 200
    values = {
        "x": np.full((1, 64), 255, np.uint8),
        "w": np.full((64, 16), 127, np.int8),
        "s": np.float32(1),
        "sy": np.float32(64 * 255 * 127 / expected),
        "zx": np.uint8(0),
        "zw": np.int8(0),
    }
    session = _load(onnx.parser.parse_model(text).SerializeToString(), _options(1))
    (y,) = session.run(None, {name: np.asarray(value) for name, value in values.items()})
    return bool((y != expected).any())


def min_onnxruntime(model: bytes | str | Path) -> str | None:
    """The lowest version that a written file, bytes or a path, names for itself; None where it names none."""
    properties = {entry.key: entry.value for entry in _read(model).metadata_props}
    return properties.get("pdq_export.min_onnxruntime")


def warn_older(model: bytes) -> None:
    """Warn where the installed onnxruntime is older than the file's lowest; sessions here do what can be done."""
    lowest = min_onnxruntime(model)
    if lowest is not None and _version(onnxruntime.__version__) < _version(lowest):
        logger.warning(
            "the file needs onnxruntime %s or newer, and this is %s; where it has activations below 8 bits in types of "
            "their own it is run here with SessionOptions.enable_mem_reuse = False, and is wrong or crashes without; "
            "update onnxruntime, or write another layout (--target) or for this version (--runtime)",
            lowest,
            onnxruntime.__version__,
        )


def may_reuse_memory(model: bytes | str | Path) -> bool:
    """Whether the installed onnxruntime computes ``model`` rightly with its default SessionOptions.enable_mem_reuse."""
    if _version(onnxruntime.__version__) >= _REUSES_MEMORY_OF_NARROW:
        return True
    return not _quantizes_below_8_bits(model, ["QuantizeLinear"])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _quantizes_below_8_bits(
    model: bytes | str | Path, operators: Container[str] = ("QuantizeLinear", "DequantizeLinear")
) -> bool:
    graph = _read(model).graph
    narrow = {tensor.name for tensor in graph.initializer if tensor.data_type in _NARROW}
    return any(node.op_type in operators and narrow.intersection(node.input) for node in graph.node)


def _read(model: bytes | str | Path) -> onnx.ModelProto:
    if isinstance(model, bytes):
        return onnx.load_model_from_string(model)
    return onnx.load(model, load_external_data=False)


def count_kernels(model: bytes | str | Path, config: Mapping[str, str] | None = None) -> KernelCount:
    """Count the kernels of the graph that onnxruntime makes of ``model`` with default options, on the CPU.

    ``model``: bytes or a path; with external data a path.
    """
    with _optimized_path() as path:
        Session(model, config=config, optimized_path=path)
        return count_layers(onnx.load(path, load_external_data=False).graph, _read(model).graph)


def open_counted(model: bytes | str | Path, *, threads: int | None = None) -> tuple[Session, KernelCount]:
    """What `open_session` and `count_kernels` give, from one session. Raises the same."""
    with _optimized_path() as path:
        session = open_session(model, threads=threads, optimized_path=path)
        return session, count_layers(onnx.load(path, load_external_data=False).graph, _read(model).graph)


@contextlib.contextmanager
def _optimized_path() -> Iterator[str]:
    with temporary_folder() as folder:
        yield str(folder / "optimized.onnx")


def _options(threads: int | None, config: Mapping[str, str] | None = None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # what goes wrong comes as an exception as well
    # Two sessions and torch alternate: spinning threads of an idle one would take the cores from the one that runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _load(model: bytes | str | Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    source = model if isinstance(model, bytes) else str(model)
    try:
        options.enable_mem_reuse = may_reuse_memory(model)
        return onnxruntime.InferenceSession(source, options, providers=PROVIDERS)
    except Exception as error:  # onnxruntime's errors share no base class
        where = "the model" if isinstance(model, bytes) else repr(str(model))
        raise ValidationError(
            f"onnxruntime {onnxruntime.__version__} does not load {where}: {_shorten(error)}"
        ) from error


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
