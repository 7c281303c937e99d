"""HardSigmoid written out as Add(3), Clip(0, 6), Div(6) becomes one node again, and HardSwish x * HardSigmoid(x).

Both orders that exporters write are known: clip(x + 3) / 6, then * x; and x * clip(x + 3), then / 6. HardSigmoid and
Mul run in integers (`plan/ramps.py`); onnxruntime itself takes HardSwish apart into the same two, but in float.
"""

import onnx
from onnx import NodeProto

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input

SIXTH = 1 / 6


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse the parts of a HardSigmoid and split every HardSwish.

    Parts are fused if nobody else reads the tensors in between.
    """
    index = GraphIndex(model)
    for node in [node for node in model.graph.node if node.op_type == "Add" and not node.domain]:
        if _fuse_hard_sigmoid(index, node):
            index = GraphIndex(model)
    for node in [node for node in model.graph.node if node.op_type == "HardSwish" and not node.domain]:
        _split_hard_swish(model, node)
    return model


def _scalar(index: GraphIndex, tensor: str | None) -> float | None:
    value = index.constant(tensor)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _operand(index: GraphIndex, node: NodeProto, wanted: float) -> str | None:
    """The other input of a node that has the scalar constant ``wanted`` as one input, else None.

    Nor where that would lend its axes to the result, or the numbers are integers.
    """
    for position, name in enumerate(node.input):
        scalar, value = _scalar(index, name), index.constant(name)
        if scalar is None or value is None or abs(scalar - wanted) > 1e-5 * wanted or len(node.input) != 2:
            continue
        other = node.input[1 - position]
        if value.dtype.kind == "f" and value.ndim <= max(index.rank(other) or 0, 1):
            return str(other)
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


def _fuse_hard_sigmoid(index: GraphIndex, add: NodeProto) -> bool:
    """Whether ``add`` began a HardSigmoid, which is one node now."""
    source = _operand(index, add, 3.0)
    clip = index.sole_consumer(add.output[0])
    if source is None or clip is None or not _clips_to_six(index, clip):
        return False
    after = index.sole_consumer(clip.output[0])
    if after is None:
        return False
    hard_sigmoid = onnx.helper.make_node("HardSigmoid", [source], [clip.output[0]], alpha=SIXTH, beta=0.5)
    if _is_sixth(index, after, clip.output[0]):
        hard_sigmoid.output[0], hard_sigmoid.name = after.output[0], after.name
        removed = [clip, after]
    elif after.op_type == "Mul" and not after.domain and {*after.input} == {source, clip.output[0]}:
        divide = index.sole_consumer(after.output[0])
        if divide is None or not _is_sixth(index, divide, after.output[0]):
            return False
        after.output[0], hard_sigmoid.name = divide.output[0], clip.name
        removed = [clip, divide]
    else:
        return False
    edit.replace_node(index.graph, add, [hard_sigmoid])
    for node in removed:
        edit.replace_node(index.graph, node, [])
    return True


def _split_hard_swish(model: onnx.ModelProto, node: NodeProto) -> None:
    """Write x * HardSigmoid(x) with alpha = 1/6, beta = 0.5, as ONNX defines it."""
    source, output = node.input[0], node.output[0]
    gate = edit.fresh_name(GraphIndex(model), f"{output}_gate")
    name = f"{node.name}/HardSigmoid" if node.name else ""
    nodes = [
        onnx.helper.make_node("HardSigmoid", [source], [gate], name, alpha=SIXTH, beta=0.5),
        onnx.helper.make_node("Mul", [source, gate], [output], node.name),
    ]
    edit.replace_node(model.graph, node, nodes)
