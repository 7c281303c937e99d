"""Runs ONNX files in onnxruntime on the CPU, and counts which kernels it chose."""

import collections
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pdq_export.errors import ValidationError

Batch = NDArray[np.float32] | tuple[NDArray[np.float32], ...]

PROVIDERS = ["CPUExecutionProvider"]
_FLOATS: dict[str, type[np.floating[Any]]] = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
_ERRORS_ONLY = 3
_LONGEST_MESSAGE = 400

# Kernels that multiply by a weight, as onnxruntime's own optimization leaves them.
INTEGER_KERNELS = frozenset(
    [
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    ]
)
FLOAT_KERNELS = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "NhwcFusedConv",
        "ConvTransposeWithDynamicPads",
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelCount:
    """How many weighted nodes run in integers and in float, by operator.

    ``floating_nodes``: the float ones, under the names that onnxruntime's optimization gives them.
    """

    integer: Mapping[str, int]
    floating: Mapping[str, int]
    floating_nodes: tuple[str, ...]

    @property
    def all_integer(self) -> bool:
        """Whether no weighted node is left in float."""
        return not self.floating


class Session:
    """A model in onnxruntime with default session options on the CPU.

    ``model``: bytes or a path. ``threads``: of one operator; None lets onnxruntime choose. Raises
    ValidationError where onnxruntime refuses the model.
    """

    def __init__(self, model: bytes | str | Path, *, threads: int | None = None) -> None:
        self._session = _load(model, _options(threads))
        values = self._session.get_inputs()
        self.inputs = tuple(value.name for value in values)
        self._dtypes = [_FLOATS.get(value.type, np.float32) for value in values]
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def run(self, batch: Batch) -> list[NDArray[np.float32]]:
        """All outputs for one batch, given in the inputs' float types; a tuple is one array for each input.

        Raises ValidationError where onnxruntime fails on it.
        """
        arrays = batch if isinstance(batch, tuple) else (batch,)
        typed = (array.astype(dtype, copy=False) for array, dtype in zip(arrays, self._dtypes, strict=True))
        feed = dict(zip(self.inputs, typed, strict=True))
        try:
            return [np.asarray(output) for output in self._session.run(self.outputs, feed)]
        except Exception as error:  # onnxruntime's errors share no base class
            shapes = ", ".join(str(list(array.shape)) for array in arrays)
            raise ValidationError(f"onnxruntime fails on a batch of shape {shapes}: {_shorten(error)}") from error

    def run_batches(self, batches: Iterable[Batch]) -> Iterator[list[NDArray[np.float32]]]:
        """All outputs for each batch, one batch at a time."""
        return (self.run(batch) for batch in batches)


def count_kernels(model: bytes) -> KernelCount:
    """Count the kernels of the graph that onnxruntime runs: optimized with default options, on the CPU."""
    with tempfile.TemporaryDirectory(prefix="pdq-export-") as folder:
        path = os.path.join(folder, "optimized.onnx")
        options = _options(None)
        options.optimized_model_filepath = path
        _load(model, options)
        nodes = onnx.load(path, load_external_data=False).graph.node
    integer = collections.Counter(node.op_type for node in nodes if node.op_type in INTEGER_KERNELS)
    floating = [node for node in nodes if node.op_type in FLOAT_KERNELS]
    return KernelCount(
        integer=dict(sorted(integer.items())),
        floating=dict(sorted(collections.Counter(node.op_type for node in floating).items())),
        floating_nodes=tuple(node.name or node.output[0] for node in floating),
    )


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _load(model: bytes | str | Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=PROVIDERS)
    except Exception as error:  # onnxruntime's errors share no base class
        where = "the model" if isinstance(model, bytes) else repr(str(model))
        raise ValidationError(
            f"onnxruntime {onnxruntime.__version__} does not load {where}: {_shorten(error)}"
        ) from error


def _shorten(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
