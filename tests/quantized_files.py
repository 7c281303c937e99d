"""Files that onnxruntime's static quantization makes, and such as are broken on purpose."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: NDArray[Any]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{name: images}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantize_by_onnxruntime(
    model: Path, images: NDArray[Any], folder: Path, form: QuantFormat = QuantFormat.QDQ
) -> onnx.ModelProto:
    """Weights by channel, in 7 bits, since wider ones saturate on some processors."""
    before, after = folder / "before.onnx", folder / f"{form.name}.onnx"
    quant_pre_process(str(model), str(before), skip_symbolic_shape=True)
    name = onnx.load(before).graph.input[0].name
    quantize_static(
        str(before),
        str(after),
        Reader(name, images),
        quant_format=form,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(after)


def scaled(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """A copy with a scale multiplied."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (tensor,) = (one for one in made.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * np.float32(factor)).astype(array.dtype), name))
    return made


def with_two_bits(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """A copy in which each channel of a layer's weight has four levels, as far apart as its range allows."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensor, channels = _integers_of(made, layer)
    integers = numpy_helper.to_array(tensor).astype(np.int64)
    axes = tuple(axis for axis in range(integers.ndim) if axis != channels)
    low, high = integers.min(axis=axes, keepdims=True), integers.max(axis=axes, keepdims=True)
    step = np.maximum(high - low, 1) / 3
    coarse = np.rint(low + np.rint((integers - low) / step) * step).astype(numpy_helper.to_array(tensor).dtype)
    tensor.CopyFrom(numpy_helper.from_array(coarse, tensor.name))
    return made


def with_wrong_scale(model: onnx.ModelProto, layer: str, factor: float) -> onnx.ModelProto:
    """A copy in which the scales of a layer's weight are multiplied."""
    return scaled(model, _dequantizer_of(model, layer).input[1], factor)


def _dequantizer_of(model: onnx.ModelProto, layer: str) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if layer in (node.name, *node.output))
    return next(one for one in model.graph.node if node.input[1] in one.output)


def _integers_of(model: onnx.ModelProto, layer: str) -> tuple[onnx.TensorProto, int]:
    """The initializer of a layer's weight, and the axis of its channels."""
    node = _dequantizer_of(model, layer)
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    return next(one for one in model.graph.initializer if one.name == node.input[0]), axis
