"""The integers of a quantized file's weights: how many bits hold them, and how many levels they use."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.validate.histograms import WeightHistogram
from pdq_export.validate.matching import Matching
from pdq_export.validate.runtime import WITHOUT_FUSION, Session

_MOVES = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightLevels:
    """Of a layer's quantized weight: ``elements``; ``bits``, which hold the integers of each channel; ``levels``: how
    many different ones the weight has. ``histogram``: of the integers.
    """

    layer: str
    elements: int
    bits: int
    levels: int
    histogram: WeightHistogram


def weight_levels(quantized: onnx.ModelProto, matching: Matching) -> tuple[WeightLevels, ...]:
    """Of all matched layers with a quantized weight; ``quantized``: in pairs."""
    made = {name: node for node in quantized.graph.node for name in node.output}
    pairs = {}
    for layer, tensor in matching.weights.items():
        node = made.get(tensor)
        while node is not None and node.op_type in _MOVES:
            node = made.get(node.input[0])
        if node is not None and node.op_type == "DequantizeLinear":
            pairs[layer] = node
    found = _evaluate(quantized, {name for node in pairs.values() for name in node.input[:2]})
    return tuple(
        _levels(layer, found[node.input[0]], found[node.input[1]].size, _axis(node)) for layer, node in pairs.items()
    )


def _axis(node: onnx.NodeProto) -> int:
    return next((one.i for one in node.attribute if one.name == "axis"), 1)


def _levels(layer: str, integers: NDArray[Any], scales: int, axis: int) -> WeightLevels:
    channels = integers.reshape(1, -1)
    if scales > 1 and scales == integers.shape[axis]:
        channels = np.moveaxis(integers, axis, 0).reshape(scales, -1)
    spans = channels.max(axis=1) - channels.min(axis=1)
    bits = max(int(spans.max()).bit_length(), 1)
    least, largest = int(integers.min()), int(integers.max())
    return WeightLevels(
        layer=layer,
        elements=integers.size,
        bits=bits,
        levels=len(np.unique(integers)),
        histogram=WeightHistogram.of(layer, integers, least, largest, bits=bits),
    )


def _evaluate(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Constant tensors as INT32; of scales it is the shape that counts."""
    wanted = sorted(names)
    if not wanted:
        return {}
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    constants = onnx.ModelProto(ir_version=model.ir_version)
    constants.opset_import.extend(model.opset_import)
    graph = constants.graph
    graph.name = "constants"
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    results = [f"{name}/int32" for name in wanted]
    for name, result in zip(wanted, results, strict=True):
        graph.node.append(onnx.helper.make_node("Cast", [name], [result], to=onnx.TensorProto.INT32))
        graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.INT32, None))
    values: Mapping[str, Any] = Session(
        constants.SerializeToString(), config=WITHOUT_FUSION, optimize=False
    ).run_by_name(())
    return {name: values[result] for name, result in zip(wanted, results, strict=True)}
