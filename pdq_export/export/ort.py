"""Layout ``ort``: activations in an 8-bit carrier, weights packed, everything integer in stock ONNX Runtime.

A textbook INT4 or INT2 graph runs in float. ONNX Runtime fuses UINT8 QuantizeLinear -> DequantizeLinear
instead, and an integer Clip between the two keeps the values within their bits without blocking that.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from pdq_export.errors import ExportError
from pdq_export.export.layers import LayerWriter, check_weight, float_inputs, without_folded_factors
from pdq_export.export.layouts import Layout, register_layout
from pdq_export.export.ranges import integer_range
from pdq_export.export.storage import storage_opset
from pdq_export.export.writer import GraphWriter, captured_tensors
from pdq_export.graph.lookup import GraphIndex, attribute, describe
from pdq_export.spec import Plan, QuantizedTensor, QuantizedTensors, Role

MIN_OPSET = 13  # DequantizeLinear along an axis
UINT8_MAX = 255
# Pass-through operators that ONNX Runtime runs on UINT8 tensors; others run in float between two pairs.
MOVES_INTEGERS = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
READS_ONLY_SHAPE = frozenset(["Shape", "Size"])


def required_opset(plan: Plan) -> int:
    """13, or what the most narrowly stored weight needs: 21 for UINT4, 25 for UINT2."""
    weights = (point for point in plan.points.values() if point.role is Role.WEIGHT)
    return max((storage_opset(point.bits) for point in weights), default=MIN_OPSET)


def write(model: onnx.ModelProto, plan: Plan, tensors: QuantizedTensors) -> GraphProto:
    """The quantized graph. Raises ExportError, naming the tensor, for whatever cannot be laid out."""
    return _OrtGraph(GraphIndex(model), plan, tensors).write()


class _OrtGraph:
    """Walks the nodes in order; a tensor that carries integers has a UINT8 name and, once read, a float."""

    def __init__(self, index: GraphIndex, plan: Plan, tensors: QuantizedTensors) -> None:
        self.index, self.plan, self.tensors = index, plan, tensors
        self.out = GraphWriter(index.graph)
        # Who is asked for these by name gets them in float, under that name.
        self.visible = {*index.outputs, *captured_tensors(index.graph)}
        self.layers = {layer.node: layer for layer in plan.layers}
        self.excluded = {layer.node for layer in plan.excluded}
        self.integers: dict[str, str] = {}
        self.floats: dict[str, str] = {}
        self.layer_writer = LayerWriter(index, self.out, plan, tensors)

    def write(self) -> GraphProto:
        self._check_points()
        for tensor in self.index.inputs:
            if self._is_activation(tensor):
                self._quantize(tensor, tensor, None)
        for node in self.index.graph.node:
            self._node(node)
        return self.out.finish()

    def _check_points(self) -> None:
        for name, point in self.plan.points.items():
            if name not in self.tensors:
                raise ExportError(f"tensor {name!r}: planned but without scale and zero_point; calibrate it first")
            if point.role is Role.WEIGHT:
                check_weight(self.index, self.tensors[name])
            elif name not in self.index.producer and name not in (
                *self.index.inputs,
                *self.index.initializers,
            ):
                raise ExportError(f"tensor {name!r}: planned but not in the model; plan the prepared model")
        for layer in self.plan.layers:
            if layer.node not in self.index.nodes:
                raise ExportError(f"node {layer.node!r}: planned but not in the model; plan the prepared model")

    def _is_activation(self, tensor: str) -> bool:
        return tensor in self.plan.points and self.plan.points[tensor].role is not Role.WEIGHT

    def _node(self, node: NodeProto) -> None:
        moved = [name for name in node.output if name in self.plan.passthrough and name not in self.plan.points]
        points = [name for name in node.output if self._is_activation(name)]
        if moved:
            self._pass_through(node, moved)
        elif not (points and self._absorb(node, points[0])):
            self._copy(node)
        for tensor in points:
            if tensor not in self.integers:
                self._quantize(tensor, tensor, None)

    def _copy(self, node: NodeProto) -> None:
        if node.name in self.layers:
            constants = self.layer_writer.constants(node, self.layers[node.name])
            copied = self.out.copy(node, [constants.get(name) or self._read(name) for name in node.input])
            without_folded_factors(copied, self.layers[node.name], constants)
        elif node.name in self.excluded and node.input[0] in self.integers:
            self.out.copy(node, float_inputs(self.out, node, [self._read(name) for name in node.input]))
        elif node.op_type in READS_ONLY_SHAPE:
            self.out.copy(node, [self.integers.get(name, name) for name in node.input])
        else:
            self.out.copy(node, [self._read(name) for name in node.input])

    # Activations

    def _absorb(self, node: NodeProto, tensor: str) -> bool:
        """Let the integer range stand for the activation ``node``; False where its float output is needed."""
        absorbed = self.plan.points[tensor].absorbed
        if absorbed is None or tensor in self.visible:
            return False
        if absorbed != node.name:
            raise ExportError(
                f"tensor {tensor!r}: is to absorb node {absorbed!r}, but {describe(node)} writes it; plan again"
            )
        self._quantize(tensor, self._read(node.input[0]), node)
        return True

    def _quantize(self, tensor: str, float_name: str, absorbed: NodeProto | None) -> None:
        """QuantizeLinear and, where the integers may not fill UINT8, an integer Clip."""
        quantized = self._activation(tensor)
        inputs = [float_name, *self._parameters(tensor)]
        name = self.out.node("QuantizeLinear", inputs, f"{tensor}_quantized", name=f"{tensor}/QuantizeLinear")
        lo, hi = integer_range(self.index, quantized, absorbed)
        if (lo, hi) != (0, UINT8_MAX):
            bounds = [self.out.uint8(lo), self.out.uint8(hi)]
            name = self.out.node("Clip", [name, *bounds], f"{tensor}_clipped", name=f"{tensor}/Clip")
        self.integers[tensor] = name

    def _activation(self, tensor: str) -> QuantizedTensor:
        """The parameters of an activation, checked."""
        quantized = self.tensors[tensor]
        scale, zero_point = np.asarray(quantized.scale), np.asarray(quantized.zero_point)
        if scale.size != 1 or zero_point.size != 1:
            raise ExportError(f"tensor {tensor!r}: scale has shape {list(scale.shape)}; expected one per tensor")
        if not (np.isfinite(scale).all() and scale.item() > 0):
            raise ExportError(f"tensor {tensor!r}: scale is {scale.item()}; expected a positive number")
        if quantized.point.symmetric or not 0 <= zero_point.item() <= UINT8_MAX:
            raise ExportError(f"tensor {tensor!r}: zero_point is {zero_point.item()}; expected 0 to {UINT8_MAX}, UINT8")
        return quantized

    def _parameters(self, point: str) -> list[str]:
        """Names of the scale and zero_point of an activation; one scale initializer for all who need it."""
        quantized, key = self._activation(point), f"{point}\0scale"
        if key not in self.floats:
            scale = np.asarray(quantized.scale, np.float32).reshape(())
            self.floats[key] = self.out.constant(f"{point}_scale", scale)
        return [self.floats[key], self.out.uint8(int(quantized.zero_point))]

    def _read(self, tensor: str) -> str:
        """The float name under which a node reads ``tensor``: dequantized where it carries integers."""
        if tensor in self.index.initializers and self._is_activation(tensor) and tensor not in self.integers:
            self._constant(tensor)
        if tensor not in self.integers:
            return tensor
        if tensor not in self.floats:
            source = self.plan.source(tensor)
            assert source is not None
            inputs, name = [self.integers[tensor], *self._parameters(source)], f"{tensor}/DequantizeLinear"
            if tensor in self.visible and tensor not in self.plan.points:
                self.floats[tensor] = self.out.node_to("DequantizeLinear", inputs, tensor, name=name)
            else:
                self.floats[tensor] = self.out.node("DequantizeLinear", inputs, f"{tensor}_dequantized", name=name)
        return self.floats[tensor]

    def _constant(self, tensor: str) -> None:
        """A constant operand (of Add, Mul, Concat) that is a point: its integers become the initializer."""
        quantized, value = self._activation(tensor), self.index.constant(tensor)
        assert value is not None
        ratio = np.rint(value.astype(np.float32) / np.float32(quantized.scale)).astype(np.float64)
        integers = np.clip(ratio + int(quantized.zero_point), quantized.point.qmin, quantized.point.qmax)
        self.integers[tensor] = self.out.constant(f"{tensor}_quantized", integers.astype(np.uint8))

    # Nodes that only move integers about

    def _pass_through(self, node: NodeProto, moved: Sequence[str]) -> None:
        source = self.plan.passthrough[moved[0]]
        if node.op_type not in MOVES_INTEGERS:
            self.out.copy(node, [self._read(name) for name in node.input])
            for tensor in moved:
                inputs, name = [tensor, *self._parameters(source)], f"{tensor}/QuantizeLinear"
                self.integers[tensor] = self.out.node("QuantizeLinear", inputs, f"{tensor}_quantized", name=name)
            return
        inputs = [self._integers_of(node, name, source) for name in node.input]
        if node.op_type == "Pad":
            inputs = self._pad_inputs(node, inputs, source)
        outputs = [self.out.tensor_name(f"{name}_quantized") if name in moved else name for name in node.output]
        self.out.copy(node, inputs, outputs)
        self.integers.update(zip(node.output, outputs, strict=True))
        for tensor in self.visible.intersection(moved):
            self._read(tensor)

    def _integers_of(self, node: NodeProto, tensor: str, source: str) -> str:
        if not tensor or self.plan.source(tensor) is None:
            return tensor
        if self.plan.source(tensor) != source or tensor not in self.integers:
            raise ExportError(
                f"tensor {tensor!r}: {describe(node)} should pass on the integers of {source!r}, but "
                f"reads those of {self.plan.source(tensor)!r}; expected one source"
            )
        return self.integers[tensor]

    def _pad_inputs(self, node: NodeProto, inputs: Sequence[str], source: str) -> list[str]:
        """The inputs of a Pad that fills with the integer that stands for 0."""
        if attribute(node, "mode", "constant") != "constant":
            return list(inputs)
        fill = self.index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if fill is None or fill.any():
            raise ExportError(f"tensor {node.output[0]!r}: {describe(node)} does not pad with 0; expected 0")
        return [*inputs[:2], self.out.uint8(int(self._activation(source).zero_point)), *inputs[3:]]


register_layout(Layout(name="ort", required_opset=required_opset, write=write))
