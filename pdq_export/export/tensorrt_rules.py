"""TensorRT's rules for explicit quantization, checked on a graph; they stand in for its builder.

From NVIDIA's developer guide, "Working with Quantized Types" and "Q/DQ Layer-Placement Recommendations".
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto

from pdq_export import operators
from pdq_export.graph.lookup import attribute, describe

_WEIGHT_AXES = {"Conv": (0,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1, 2, 3)}


def tensorrt_problems(graph: GraphProto) -> list[str]:
    """What TensorRT would refuse or run in float, one line each; empty if the graph keeps to the rules.

    Zero points are INT8 and 0, scales are positive, and nothing lies within a pair. Activations have one scale, weights
    one for each output channel. A layer with a quantized weight has a quantized input and a float bias. Of an Add that
    two layers go into, at most one operand lies behind a pair.
    """
    return list(_Rules(graph).problems())


class _Rules:
    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._producer: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}

    def problems(self) -> Iterator[str]:
        for node in self._graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield from self._pair(node)
            elif operators.get(node.op_type).weighted:
                yield from self._layer(node)
            elif node.op_type == "Add":
                yield from self._addition(node)

    def _pair(self, node: NodeProto) -> Iterator[str]:
        scale, zero_point = (self._value(name) for name in node.input[1:3])
        where = describe(node)
        if scale is None or not (scale > 0).all():
            yield f"{where}: its scale is not a positive constant; expected one"
        elif scale.size > 1 and not (node.op_type == "DequantizeLinear" and node.input[0] in self._constants):
            yield f"{where}: has {scale.size} scales; expected one for an activation"
        if zero_point is None or zero_point.dtype != np.int8 or zero_point.any():
            yield f"{where}: its zero_point is not INT8 and 0; expected symmetric quantization"
        before = self._producer.get(node.input[0])
        if node.op_type == "DequantizeLinear" and before is not None and before.op_type != "QuantizeLinear":
            yield f"{where}: a {before.op_type} lies between the pair; expected 8 bits and nothing between"

    def _layer(self, node: NodeProto) -> Iterator[str]:
        weight = self._dequantize(node.input[1])
        if weight is None:
            return
        where = describe(node)
        if weight.input[0] not in self._constants:
            yield f"{where}: its quantized weight is computed; expected an INT8 initializer"
        scale, axis = self._value(weight.input[1]), attribute(weight, "axis", 1)
        if scale is not None and scale.ndim and axis not in _WEIGHT_AXES[node.op_type]:
            yield f"{where}: its weight has scales along axis {axis}; expected {_WEIGHT_AXES[node.op_type][0]}"
        if self._dequantize(node.input[0]) is None:
            yield f"{where}: its weight is quantized and its input is not; expected both or neither"
        if len(node.input) > 2 and self._dequantize(node.input[2]) is not None:
            yield f"{where}: its bias is quantized; expected float"

    def _addition(self, node: NodeProto) -> Iterator[str]:
        """A layer is fused with the Add after it, unless a pair lies between; it belongs on the residual branch."""
        hidden = [
            pair for name in node.input if (pair := self._dequantize(name)) is not None and self._after_layer(pair)
        ]
        if len(hidden) == len(node.input):
            yield f"{describe(node)}: both operands are layers behind pairs; expected one on the residual branch only"

    def _after_layer(self, dequantize: NodeProto) -> bool:
        quantize = self._producer.get(dequantize.input[0])
        before = None if quantize is None else self._producer.get(quantize.input[0])
        return before is not None and operators.get(before.op_type).weighted

    def _dequantize(self, tensor: str) -> NodeProto | None:
        node = self._producer.get(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _value(self, tensor: str) -> NDArray[Any] | None:
        known = self._constants.get(tensor)
        return None if known is None else onnx.numpy_helper.to_array(known)
