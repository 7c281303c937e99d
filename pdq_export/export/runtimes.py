"""The lowest onnxruntime that computes what a written file says, as measured (benchmarks/RESULTS.md)."""

from collections.abc import Iterator

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from pdq_export.graph.lookup import attribute, opset_version

KEY = "pdq_export.min_onnxruntime"
# 1.15 is the oldest that was tried.
_OPSETS = {18: "1.15", 19: "1.16", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23", 25: "1.24"}
_NEWER = "1.25"
_FOUR, _TWO = ("1.20", "1.23"), ("1.24", "1.24")  # DequantizeLinear and Cast of types of 4 and 2 bits
_NARROW = {TensorProto.INT4: _FOUR, TensorProto.UINT4: _FOUR, TensorProto.INT2: _TWO, TensorProto.UINT2: _TWO}
# Up to 1.30 the memory of a 4-bit tensor is used again for one of 8 bits: wrong values, or a crash.
_NARROW_ACTIVATIONS = "1.31"
# Before, onnxruntime divides by the wrong number where an average counts its padding: below opset 19 in the windows
# that ceil_mode adds, from it on in others as well.
_COUNTED_PADDING = ("1.29", "1.25")


def min_onnxruntime(model: onnx.ModelProto) -> str:
    """The lowest version of onnxruntime that runs a model, major and minor, as in 1.23.

    It follows from the opset, from types below 8 bits and the nodes that have them, and from averages that some
    versions compute wrongly. Newer operators among the nodes that are copied as they are may ask for more.
    """
    opset = opset_version(model)
    of_opset = next((version for newest, version in _OPSETS.items() if opset <= newest), _NEWER)
    of_averages = (_of_average(node, opset) for node in model.graph.node if node.op_type == "AveragePool")
    return max([of_opset, *filter(None, of_averages), *_of_types(model.graph)], key=_number)


def _of_average(node: NodeProto, opset: int) -> str | None:
    """What an AveragePool needs that counts padding, and has some."""
    ceil = attribute(node, "ceil_mode", 0)
    pads = any(attribute(node, "pads", ())) or str(attribute(node, "auto_pad", "NOTSET")).startswith("SAME")
    if not attribute(node, "count_include_pad", 0) or not (ceil or (pads and opset >= 19)):
        return None
    return _COUNTED_PADDING[opset >= 19]


def _of_types(graph: GraphProto) -> Iterator[str]:
    narrow = {tensor.name: _NARROW[tensor.data_type] for tensor in graph.initializer if tensor.data_type in _NARROW}
    for node in graph.node:
        for dequantized, cast in (narrow[name] for name in node.input if name in narrow):
            match node.op_type:
                case "Cast":
                    yield cast
                case "QuantizeLinear":
                    yield _NARROW_ACTIVATIONS
                case _:
                    yield dequantized


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
