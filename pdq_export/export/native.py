"""Layout ``native``: textbook UINT4 and UINT2 pairs, for compilers and accelerators that have such arithmetic.

Weights and activations lie in the narrowest type that holds their bits, with real zero points: 2 bits in UINT2 (opset
25), 3 and 4 in UINT4 (opset 21), 5 to 8 in UINT8; symmetric weights in the signed types. Where the bits do not fill
the type, or a Relu or Clip keeps out of a part of it, a Clip of integers says so at 8 bits; Clip knows no narrower
type, so that below Max and Min limit the float before QuantizeLinear.
"""

from onnx import GraphProto, NodeProto

from pdq_export.export.constants import Weight
from pdq_export.export.layers import textbook_weight
from pdq_export.export.layouts import Layout, Quantized
from pdq_export.export.qdq import QdqGraph
from pdq_export.export.storage import storage_bits, storage_opset
from pdq_export.export.writer import GraphWriter
from pdq_export.spec import Plan, Point


def required_opset(plan: Plan) -> int:
    """13, or what the narrowest type needs: 21 for UINT4, 25 for UINT2."""
    return max((storage_opset(point.bits) for point in plan.points.values()), default=storage_opset(8))


def write(quantized: Quantized) -> GraphProto:
    """The quantized graph. Raises ExportError, naming the tensor, for everything that cannot be laid out."""
    return _NativeGraph(quantized).write()


class _NativeGraph(QdqGraph):
    absorbs = (
        True  # onnxruntime's fusion of Clip and QuantizeLinear fails on UINT4, so that `_copy` rewrites what stays
    )

    def _copy(self, node: NodeProto) -> None:
        """A Clip whose result is quantized to less than 8 bits is written as Max and Min."""
        point = self.plan.points.get(node.output[0])
        if node.op_type != "Clip" or point is None or self.container(point) == 8:
            super()._copy(node)
            return
        source, *bounds = self.read_all(node)
        limits = [(op_type, bound) for op_type, bound in zip(("Max", "Min"), bounds, strict=False) if bound]
        for op_type, bound in limits[:-1]:
            name = f"{node.output[0]}_{op_type.lower()}"
            source = self.out.node(op_type, [source, bound], name, name=f"{node.name}/{op_type}")
        op_type, bounds = (limits[-1][0], [limits[-1][1]]) if limits else ("Identity", [])
        self.out.node_to(op_type, [source, *bounds], node.output[0], name=f"{node.name}/{op_type}")

    def container(self, point: Point) -> int:
        return storage_bits(point.bits, self.index.opset)

    def weight(self, out: GraphWriter, weight: Weight) -> list[str]:
        return textbook_weight(out, weight, self.container(weight.point), clip=False)


LAYOUT = Layout(name="native", required_opset=required_opset, write=write)
