"""An older opset, where the operators of a graph mean the same in it."""

import onnx

from pdq_export.graph.edit import fresh_name, replace_node
from pdq_export.graph.lookup import GraphIndex

HARD_SWISH_OPSET = 14


def run(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Declare the default domain's opset to be ``opset``; onnx.checker has to say whether the graph is valid in it.

    Between 13 and 25 operators gained types, inputs and attributes; the checker finds those that are used. HardSwish
    came in 14 and is written as the two nodes that define it.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    if opset < HARD_SWISH_OPSET:
        for node in [node for node in model.graph.node if node.op_type == "HardSwish" and not node.domain]:
            _expand_hard_swish(model, node)
    return model


def _expand_hard_swish(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Write x * HardSigmoid(x) with alpha = 1/6, beta = 0.5, as ONNX defines it."""
    source, output = node.input[0], node.output[0]
    gate = fresh_name(GraphIndex(model), f"{output}_gate")
    nodes = [
        onnx.helper.make_node("HardSigmoid", [source], [gate], f"{node.name}/HardSigmoid", alpha=1 / 6, beta=0.5),
        onnx.helper.make_node("Mul", [source, gate], [output], node.name),
    ]
    replace_node(model.graph, node, nodes)
