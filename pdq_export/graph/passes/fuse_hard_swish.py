"""HardSigmoid and HardSwish written out as Add(3), Clip(0, 6), Mul, Div(6) become one node again.

Both orders that exporters write are known: clip(x + 3) / 6, then * x; and x * clip(x + 3), then / 6.
"""

import onnx
from onnx import NodeProto

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input

SIXTH = 1 / 6
HARD_SWISH_OPSET = 14


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse where nobody else reads the tensors in between; HardSwish needs opset 14, below it stays a Mul."""
    for node in [node for node in model.graph.node if node.op_type == "Add" and not node.domain]:
        _fuse_hard_sigmoid(GraphIndex(model), node)
    index = GraphIndex(model)
    if index.opset >= HARD_SWISH_OPSET:
        for node in [node for node in model.graph.node if node.op_type == "Mul" and not node.domain]:
            if _fuse_hard_swish(index, node):
                index = GraphIndex(model)
    return model


def _scalar(index: GraphIndex, tensor: str | None) -> float | None:
    value = index.constant(tensor)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _operand(index: GraphIndex, node: NodeProto, wanted: float) -> str | None:
    """The other input of a node that has the scalar constant ``wanted`` as one input, else None."""
    for position, name in enumerate(node.input):
        scalar = _scalar(index, name)
        if scalar is not None and abs(scalar - wanted) <= 1e-5 * wanted and len(node.input) == 2:
            return str(node.input[1 - position])
    return None


def _is_sixth(index: GraphIndex, node: NodeProto | None, tensor: str) -> bool:
    """Whether ``node`` computes ``tensor / 6``."""
    if node is None or node.domain or node.op_type not in ("Mul", "Div"):
        return False
    if node.op_type == "Div":
        return node.input[0] == tensor and _operand(index, node, 6.0) == tensor
    return _operand(index, node, SIXTH) == tensor


def _clips_to_six(index: GraphIndex, node: NodeProto | None) -> bool:
    if node is None or node.domain or node.op_type != "Clip":
        return False
    low = attribute(node, "min", _scalar(index, optional_input(node, 1)))
    high = attribute(node, "max", _scalar(index, optional_input(node, 2)))
    return low == 0 and high == 6


def _fuse_hard_sigmoid(index: GraphIndex, add: NodeProto) -> None:
    source = _operand(index, add, 3.0)
    clip = index.sole_consumer(add.output[0])
    if source is None or clip is None or not _clips_to_six(index, clip):
        return
    after = index.sole_consumer(clip.output[0])
    if after is None:
        return
    hard_sigmoid = onnx.helper.make_node("HardSigmoid", [source], [clip.output[0]], alpha=SIXTH, beta=0.5)
    if _is_sixth(index, after, clip.output[0]):
        hard_sigmoid.output[0], hard_sigmoid.name = after.output[0], after.name
        removed = [clip, after]
    elif after.op_type == "Mul" and not after.domain and {*after.input} == {source, clip.output[0]}:
        divide = index.sole_consumer(after.output[0])
        if divide is None or not _is_sixth(index, divide, after.output[0]):
            return
        after.output[0], hard_sigmoid.name = divide.output[0], clip.name
        removed = [clip, divide]
    else:
        return
    edit.replace_node(index.graph, add, [hard_sigmoid])
    for node in removed:
        edit.replace_node(index.graph, node, [])


def _fuse_hard_swish(index: GraphIndex, mul: NodeProto) -> bool:
    for position, name in enumerate(mul.input):
        gate = index.producer.get(name)
        if gate is None or gate.op_type != "HardSigmoid" or gate.domain:
            continue
        if index.sole_consumer(name) is not mul:
            continue
        alpha, beta = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
        if abs(alpha - SIXTH) < 1e-5 and beta == 0.5 and gate.input[0] == mul.input[1 - position]:
            fused = onnx.helper.make_node("HardSwish", [gate.input[0]], [mul.output[0]], name=mul.name)
            edit.replace_node(index.graph, mul, [fused])
            edit.replace_node(index.graph, gate, [])
            return True
    return False
