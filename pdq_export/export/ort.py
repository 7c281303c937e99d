"""Layout ``ort``: activations in an 8-bit carrier, weights packed, everything integer in stock ONNX Runtime.

A textbook INT4 or INT2 graph runs in float. ONNX Runtime fuses UINT8 QuantizeLinear -> DequantizeLinear
instead, and an integer Clip between the two keeps the values within their bits without blocking that. Weights of every
width lie packed in bytes, which opset 13 unpacks (`pdq_export.export.packing`), or in UINT2 and UINT4 (`Packing`).
"""

import functools
from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, NodeProto

from pdq_export import operators
from pdq_export.errors import ExportError
from pdq_export.export.constants import Weight
from pdq_export.export.layers import typed_integers, unpacked_weight
from pdq_export.export.layouts import Layout, Packing, Quantized
from pdq_export.export.qdq import QdqGraph
from pdq_export.export.runtimes import OLDEST, moves_integers
from pdq_export.export.storage import storage_bits
from pdq_export.export.unpacking import Unpacking
from pdq_export.export.writer import GraphWriter
from pdq_export.graph.lookup import attribute, describe
from pdq_export.spec import Point


def write(quantized: Quantized) -> GraphProto:
    """The quantized graph. Raises ExportError, naming the tensor, for everything that cannot be laid out."""
    return _OrtGraph(quantized).write()


class _OrtGraph(QdqGraph):
    absorbs = True
    packs = True

    def container(self, point: Point) -> int:
        return 8

    def weight(self, out: GraphWriter, weight: Weight) -> list[str]:
        point, bits = weight.point, self._typed_bits(weight)
        if weight.key in self._unpacking:
            integers = self._unpacking.write(weight.key)
        else:
            integers = typed_integers(out, weight, bits)
        fills = point.bits == 8 or (point.bits == 7 and not point.symmetric)
        return unpacked_weight(out, weight, integers, sole=bits == 8 and (fills or self.form == 3) and self.form > 2)

    def _typed_bits(self, weight: Weight) -> int:
        """Bits of the type that holds a weight which is not packed in bytes: 2, 4 or 8."""
        bits = storage_bits(weight.point.bits, self.index.opset)
        if self.form < 4 or (self.packing is Packing.TYPES and bits == weight.point.bits):
            return bits
        return 8

    @functools.cached_property
    def _unpacking(self) -> Unpacking:
        """Of all weights that are packed in bytes."""
        weights = (settled.weight for settled in self.settled.values())
        return Unpacking(self.out, [w for w in weights if self.form > 3 and self._typed_bits(w) == 8])

    def moves_integers(self, node: NodeProto) -> bool:
        """Only what every onnxruntime moves; between two pairs, its floats become the same integers again."""
        moves = operators.get(node.op_type).moves
        return moves and (self.form < 4 or moves_integers(node.op_type, OLDEST))

    def _copy(self, node: NodeProto) -> None:
        """A HardSigmoid that maps integers to themselves, clipped, is written as that Clip."""
        tensor = node.output[0]
        if node.op_type != "HardSigmoid" or tensor in self.visible or not self._share_integers(node):
            super()._copy(node)

    def _share_integers(self, node: NodeProto) -> bool:
        """Clip the integers of the input for the output where that is exact for all of them."""
        source, tensor = self.plan.source(node.input[0]), node.output[0]
        if source is None or node.input[0] not in self.integers or not self._is_activation(tensor):
            return False
        x, y, q = self.activation(source), self.activation(tensor), np.arange(256)
        ramp = (q - int(x.zero_point)) * np.float64(x.scale) * attribute(node, "alpha", 0.2)
        gate = np.clip(ramp + attribute(node, "beta", 0.5), 0, 1)
        wanted = np.clip(gate / np.float64(y.scale) + int(y.zero_point), 0, y.point.qmax)
        lo, hi = round(wanted[0]), round(wanted[-1])
        if np.abs(wanted - np.clip(q, lo, hi)).max() > 0.01:
            return False
        integers = self.integers[node.input[0]]
        if self.form > 3 and node.input[0] in self.unclipped:  # two Clips, one after the other, are one
            integers, *own = self.unclipped[node.input[0]]
            lo, hi = (min(max(bound, lo), hi) for bound in own)
        self.ranges.settle(y, (lo, hi))
        self.integers[tensor] = self.clip(integers, lo, hi, tensor, name=node.name)
        return True

    def _absorb(self, node: NodeProto, tensor: str) -> bool:
        """Between two scales an Add of 0, which is an integer kernel: half the time of going through float."""
        if node.op_type != "Identity" or tensor in self.visible:
            return super()._absorb(node, tensor)
        inputs = [self.read(node.input[0]), self._nothing]
        self._quantize(tensor, self.out.node("Add", inputs, f"{tensor}_wide", name=node.name), node)
        return True

    @functools.cached_property
    def _nothing(self) -> str:
        """A dequantized 0, of one axis: onnxruntime changes a scalar so that it no longer is a constant."""
        zero = self.out.constant("zero_quantized", np.zeros(1, np.uint8))
        scale = self.out.constant("zero_scale", np.ones((), np.float32))
        return self.out.node("DequantizeLinear", [zero, scale, self.out.integer(0, 8)], "zero_dequantized")

    def read_all(self, node: NodeProto) -> list[str]:
        if operators.get(node.op_type).reads_shape:
            return [self.integers.get(name, name) for name in node.input]
        return super().read_all(node)

    def move_inputs(self, node: NodeProto, inputs: Sequence[str], source: str) -> list[str]:
        """A Pad fills with the integer that stands for 0."""
        if node.op_type != "Pad" or attribute(node, "mode", "constant") != "constant":
            return list(inputs)
        fill = self.index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if fill is None or fill.any():
            raise ExportError(f"tensor {node.output[0]!r}: {describe(node)} does not pad with 0; expected 0")
        return [*inputs[:2], self.zero_point(source), *inputs[3:]]


LAYOUT = Layout(name="ort", write=write, packs=True)
