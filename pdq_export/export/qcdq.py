"""Layout ``qcdq``: 8-bit containers with Clip and no narrower type, for older runtimes and hardware tool chains.

QuantizeLinear -> Clip -> DequantizeLinear for activations and integers -> Clip -> DequantizeLinear for weights, as
Brevitas and QONNX have it (Pappalardo et al., "QONNX: Representing Arbitrary-Precision Quantized Neural Networks",
section 4): the bounds of the Clip tell the bits. Activations are UINT8 with their zero points. Weights are INT8 with
zero_point 0, the only one that these runtimes have convolutions for: asymmetric ones of b bits less their zero points,
which take b + 1. Opset 13 is enough; Relu and Clip stay before their pair, but a Clip whose upper bound the integers
have anyhow (ReLU6 before few bits) is a Relu: runtimes fuse that, and no Clip of floats.
"""

from onnx import GraphProto, NodeProto

from pdq_export.export.constants import Weight
from pdq_export.export.layers import centered_weight, textbook_weight
from pdq_export.export.layouts import Layout, Quantized
from pdq_export.export.qdq import QdqGraph
from pdq_export.export.ranges import bound, integer_range
from pdq_export.export.writer import GraphWriter
from pdq_export.spec import Point


def write(quantized: Quantized) -> GraphProto:
    """The quantized graph. Raises ExportError, naming the tensor, for everything that cannot be laid out."""
    return _QcdqGraph(quantized).write()


class _QcdqGraph(QdqGraph):
    tells_bits = True

    def _copy(self, node: NodeProto) -> None:
        tensor = node.output[0]
        if self.form < 4 or node.op_type != "Clip" or tensor in self.visible or not self._starts_at_zero(node):
            super()._copy(node)
        else:
            self.out.node_to("Relu", [self.read(node.input[0])], tensor, name=node.name)

    def _starts_at_zero(self, clip: NodeProto) -> bool:
        """Whether all that a Clip does to what is quantized behind it is a Relu."""
        if clip.output[0] not in self.activations or (quantized := self.activation(clip.output[0])).point.bits == 8:
            return False
        if not all(self.index.is_constant(name) for name in clip.input[1:] if name):
            return False
        return bound(self.index, clip, 1) == 0 and integer_range(self.index, quantized, clip)[1] == quantized.point.qmax

    def container(self, point: Point) -> int:
        return 8

    def weight(self, out: GraphWriter, weight: Weight) -> list[str]:
        if weight.point.symmetric or self.form < 3:
            return textbook_weight(out, weight, 8, clip=True)
        return centered_weight(out, weight)


LAYOUT = Layout(name="qcdq", write=write, shrinks=False)
