"""Layout ``tensorrt``: INT8 pairs where TensorRT's explicit quantization reads them, for building an engine.

Everything is symmetric INT8 with zero_point 0, per tensor for activations and per output channel for weights, which are
INT8 initializers before a DequantizeLinear. Biases stay float. Opset 13. The plan (`plan.passes.tensorrt`) has the
pairs where TensorRT wants them: this layout writes it as textbooks do, and `tensorrt_problems` checks the result.
"""

from onnx import GraphProto

from pdq_export.errors import ExportError
from pdq_export.export.constants import Weight
from pdq_export.export.layers import textbook_weight
from pdq_export.export.layouts import Layout, Quantized
from pdq_export.export.qdq import QdqGraph
from pdq_export.export.tensorrt_rules import tensorrt_problems
from pdq_export.export.writer import GraphWriter
from pdq_export.spec import Point


def write(quantized: Quantized) -> GraphProto:
    """The quantized graph. Raises ExportError for everything that cannot be laid out and for a broken rule."""
    graph = _TensorrtGraph(quantized).write()
    problems = tensorrt_problems(graph)
    if problems:
        raise ExportError(f"{problems[0]}; plan the model for tensorrt")
    return graph


class _TensorrtGraph(QdqGraph):
    signed = True

    def container(self, point: Point) -> int:
        return 8

    def weight(self, out: GraphWriter, weight: Weight) -> list[str]:
        return textbook_weight(out, weight, 8, clip=False)


LAYOUT = Layout(name="tensorrt", write=write, for_onnxruntime=False)
