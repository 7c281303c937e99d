"""Layout ``qonnx``: Quant nodes of QONNX between floats, for tools that build hardware (FINN, hls4ml).

Quant(x, scale, zeropt, bitwidth) = (round(clip(x / scale + zeropt)) - zeropt) * scale, in float32 (Pappalardo et al.,
"QONNX: Representing Arbitrary-Precision Quantized Neural Networks", section 5). Whatever these tools ask, holds:

- scale, zeropt and bitwidth are initializers; a zeropt of 0 is one number, a scale per channel has the weight's rank;
- an activation whose zero_point is the middle of its integers, 2^(bits-1), is signed, with a zeropt of 0, which FINN
  asks for. That is the same: the middle is even, so that halves are rounded alike;
- weights are floats that a Quant leaves as they are, each read by one layer: FINN folds no Quant that two read;
- Relu stays before an unsigned Quant. A Clip that the integers make superfluous is written as one; others stay;
- biases are floats on the grid of input scale times weight scale, without a Quant: tools extract them as an Add and
  fold them into thresholds or scales, whereas a Quant of 32 bits is more than QONNX's own conversion to QCDQ takes, and
  with a scale per channel more than hls4ml propagates. They are INT32 numbers all the same;
- what only moves values about runs on floats that are quantized already;
- what ONNX has defaults for in convolutions and pools is written: QONNX's channels-last conversion asks for it.
"""

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from pdq_export.export.constants import LayerConstants, Weight, along_axis
from pdq_export.export.layers import ConstantsWriter
from pdq_export.export.layouts import Layout, Quantized
from pdq_export.export.qdq import QdqGraph
from pdq_export.export.qonnx_constants import QUANT, Floats, bias_values, weight_values
from pdq_export.export.ranges import integer_range
from pdq_export.export.writer import GraphWriter
from pdq_export.graph.lookup import attribute
from pdq_export.operators import QONNX_DOMAIN
from pdq_export.spec import Point

_WRITTEN_OUT = {
    "Conv": ("kernel_shape", "strides", "dilations", "pads", "group"),
    "MaxPool": ("strides", "pads"),
    "AveragePool": ("strides", "pads"),
}


def write(quantized: Quantized) -> GraphProto:
    """The quantized graph. Raises ExportError, naming the tensor, for everything that cannot be laid out."""
    return _QonnxGraph(quantized).write()


class _QonnxGraph(QdqGraph):
    """No tensor carries integers: ``floats`` has what a Quant gives, by the tensor that it reads."""

    def container(self, point: Point) -> int:
        return 8

    def layer_writer(self) -> ConstantsWriter:
        self._quants = _QuantWriter(self.out)
        return _LayerWriter(self._quants)

    def read(self, tensor: str) -> str:
        if tensor in self.index.initializers and self._is_activation(tensor) and tensor not in self.floats:
            self._constant(tensor)
        return self.floats.get(tensor, tensor)

    def _quantize(self, tensor: str, float_name: str, absorbed: NodeProto | None) -> None:
        inputs, point = [float_name, *self._parameters(tensor)], self.plan.points[tensor]
        self.floats[tensor] = self._quants.quant(
            inputs, point, f"{tensor}_quantized", f"{tensor}/{QUANT}", signed=self._is_signed(tensor)
        )

    def _quantize_moved(self, tensor: str) -> None:
        """It is quantized already."""

    def zero_point(self, point: str) -> str:
        value = 0 if self._is_signed(point) else int(self.activation(point).zero_point)
        return self._quants.number("zero_point", value)

    def _is_signed(self, tensor: str) -> bool:
        """Whether the integers of an activation, less its zero_point, are those of a signed type."""
        return int(self.activation(tensor).zero_point) == 1 << self.plan.points[tensor].bits - 1

    def _constant(self, tensor: str) -> None:
        quantized = self.activation(tensor)
        centered = self.constant_integers(tensor).astype(np.float32) - np.float32(quantized.zero_point)
        self._quantize(tensor, self.out.constant(f"{tensor}_float", centered * np.float32(quantized.scale)), None)

    def _copy(self, node: NodeProto) -> None:
        if node.op_type == "Clip" and self._is_rectifier(node):
            self.out.copy(node, [self.read(node.input[0])]).op_type = "Relu"
        else:
            super()._copy(self._written_out(node))

    def _written_out(self, node: NodeProto) -> NodeProto:
        """The node with all attributes that are defaults in ONNX and have to be there for QONNX."""
        kernel = attribute(node, "kernel_shape", None)
        if node.op_type == "Conv" and kernel is None and (shape := self._weight_shape(node)) is not None:
            kernel = shape[2:]
        if node.op_type not in _WRITTEN_OUT or kernel is None:
            return node
        rank, given = len(kernel), {item.name for item in node.attribute}
        defaults = {"kernel_shape": kernel, "strides": [1] * rank, "dilations": [1] * rank, "group": 1}
        if attribute(node, "auto_pad", "NOTSET") == "NOTSET":
            defaults["pads"] = [0] * 2 * rank
        completed = NodeProto()
        completed.CopyFrom(node)
        for name in _WRITTEN_OUT[node.op_type]:
            if name in defaults and name not in given:
                completed.attribute.append(onnx.helper.make_attribute(name, defaults[name]))
        return completed

    def _weight_shape(self, node: NodeProto) -> tuple[int, ...] | None:
        if node.name in self.settled:
            return self.settled[node.name].weight.integers.shape
        weight = self.index.constant(node.input[1])
        return None if weight is None else weight.shape

    def _is_rectifier(self, clip: NodeProto) -> bool:
        """Whether the integers behind a Clip are the same if it is a Relu: they end where it does, or before."""
        tensor = clip.output[0]
        point = self.plan.points.get(tensor)
        if point is None or point.absorbed != clip.name or tensor in self.visible:
            return False
        quantized = self.activation(tensor)
        whole = integer_range(self.index, quantized, clip) == (point.qmin, point.qmax)
        return whole and int(quantized.zero_point) == point.qmin == 0


class _QuantWriter:
    """Writes Quant nodes; equal numbers are one initializer."""

    def __init__(self, out: GraphWriter) -> None:
        self.out = out
        self._numbers: dict[tuple[str, int], str] = {}

    def number(self, what: str, value: int) -> str:
        """A scalar."""
        if (what, value) not in self._numbers:
            self._numbers[what, value] = self.out.constant(f"{what}_{value}", np.array(value, np.float32))
        return self._numbers[what, value]

    def quant(self, inputs: list[str], point: Point, output: str, name: str, *, signed: bool) -> str:
        """The Quant of x, scale and zeropt to as many integers as ``point`` has. Returns the name of its output."""
        return self.out.node(
            QUANT,
            [*inputs, self.number("bits", point.bits)],
            output,
            name=name,
            domain=QONNX_DOMAIN,
            signed=int(signed),
            narrow=int(point.symmetric and point.qmin == -point.qmax),
            rounding_mode="ROUND",
        )


class _LayerWriter:
    """Weights before a Quant of their own, and biases; layers that share a weight share its numbers."""

    def __init__(self, quants: _QuantWriter) -> None:
        self._quants, self._out = quants, quants.out
        self._weights: dict[tuple[str, bytes], list[str]] = {}

    def constants(self, constants: LayerConstants, input_scale: tuple[str, np.float32] | None) -> dict[str, str]:
        weight, bias = constants.weight, constants.bias
        name = weight.point.tensor
        key = (name, weight.scale.tobytes())
        if key not in self._weights:
            self._weights[key] = self._numbers(weight)
        inputs, point = self._weights[key], weight.point
        quant = self._quants.quant(inputs, point, f"{name}_quantized", f"{name}/{QUANT}", signed=point.symmetric)
        if bias is None:
            return {name: quant}
        assert input_scale is not None, "a bias in integers has an input in integers"
        values = bias_values(bias, input_scale[1], weight.scale)
        return {name: quant, bias.tensor: self._out.constant(f"{bias.tensor}_float", values)}

    def _numbers(self, weight: Weight) -> list[str]:
        """Names of the floats, the scale and the zeropt."""
        name, point, rank = weight.point.tensor, weight.point, weight.integers.ndim
        zeros = weight.zero_point.any()
        return [
            self._out.constant(f"{name}_float", weight_values(weight)),
            self._out.constant(f"{name}_scale", _floats(along_axis(weight.scale, point.axis, rank))),
            self._out.constant(f"{name}_zero_point", _floats(weight.along_axis(weight.zero_point)))
            if zeros
            else self._quants.number("zero_point", 0),
        ]


def _floats(values: object) -> Floats:
    return np.asarray(values, np.float32)


LAYOUT = Layout(name="qonnx", write=write, shrinks=False, for_onnxruntime=False, domains={QONNX_DOMAIN: 1})
