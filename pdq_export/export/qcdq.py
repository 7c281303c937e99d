"""Layout ``qcdq``: 8-bit containers with Clip and no narrower type, for older runtimes and hardware tool chains.

QuantizeLinear -> Clip -> DequantizeLinear for activations and integers -> Clip -> DequantizeLinear for weights, as
Brevitas and QONNX have it (Pappalardo et al., "QONNX: Representing Arbitrary-Precision Quantized Neural Networks",
section 4): the bounds of the Clip tell the bits. Activations are UINT8 with their zero points. Weights are INT8 with
zero_point 0, the only one that these runtimes have convolutions for: asymmetric ones of b bits less their zero points,
which take b + 1. Opset 13 is enough; Relu and Clip stay before their pair.
"""

from onnx import GraphProto

from pdq_export.export.constants import Weight
from pdq_export.export.layers import centered_weight, textbook_weight
from pdq_export.export.layouts import Layout, Quantized
from pdq_export.export.qdq import QdqGraph
from pdq_export.export.writer import GraphWriter
from pdq_export.spec import Plan, Point


def required_opset(plan: Plan) -> int:
    """13: DequantizeLinear along an axis, Clip of integers."""
    return 13


def write(quantized: Quantized) -> GraphProto:
    """The quantized graph. Raises ExportError, naming the tensor, for everything that cannot be laid out."""
    return _QcdqGraph(quantized).write()


class _QcdqGraph(QdqGraph):
    def container(self, point: Point) -> int:
        return 8

    def weight(self, out: GraphWriter, weight: Weight) -> tuple[str, str]:
        if weight.point.symmetric or self.form < 3:
            return textbook_weight(out, weight, 8, clip=True)
        return centered_weight(out, weight)


LAYOUT = Layout(name="qcdq", required_opset=required_opset, write=write)
