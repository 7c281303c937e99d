"""What a node is where that depends on more than its operator: on attributes, on constants, on what comes before it."""

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input


def is_absorbable(index: GraphIndex, node: NodeProto) -> bool:
    """Whether the integer range alone can express this activation: Relu, or Clip with constant bounds around 0."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip":
        return False
    if index.opset < 11:
        low, high = attribute(node, "min", -np.inf), attribute(node, "max", np.inf)
    else:
        bounds = [optional_input(node, position) for position in (1, 2)]
        if any(bound is not None and not index.is_constant(bound) for bound in bounds):
            return False
        low, high = (
            default if bound is None else np.asarray(index.constant(bound)).item()
            for bound, default in zip(bounds, (-np.inf, np.inf), strict=True)
        )
    return bool(low <= 0.0 < high)


def is_passthrough(index: GraphIndex, node: NodeProto) -> bool:
    """Whether every output element equals an input element (or exact zero), so that integers pass unchanged."""
    if not node.input or index.is_constant(node.input[0]):
        return False
    match node.op_type:
        case "Concat":  # of several tensors, which may have scales of their own
            return False
        case "MaxPool":
            return len(node.output) == 1
        case "Gather":
            return index.is_constant(node.input[1])
        case "Pad":
            value = index.constant(optional_input(node, 2))
            return attribute(node, "mode", "constant") != "constant" or (
                optional_input(node, 2) is None if value is None else not value.any()
            )
        case "Resize":
            return attribute(node, "mode", "nearest") == "nearest" and (
                attribute(node, "coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
            )
        case op_type:
            return operators.get(op_type).moves


def is_nonnegative(index: GraphIndex, tensor: str) -> bool:
    """Whether the operator that a tensor comes from, through moves and averages, has no negative results."""
    while (node := index.producer.get(tensor)) is not None:
        operator = operators.get(node.op_type)
        if operator.nonnegative:
            return True
        if node.op_type == "Clip":
            low = attribute(node, "min") if index.opset < 11 else index.constant(optional_input(node, 1))
            return low is not None and bool(np.asarray(low) >= 0)
        if not (operator.averages or is_passthrough(index, node)):
            return False
        tensor = node.input[0]
    return False


def data_inputs(index: GraphIndex, node: NodeProto) -> list[str]:
    """The inputs that are computed from the images; none if the node computes with sizes alone."""
    if index.sized.issuperset(filter(None, node.output)):
        return []
    return [tensor for tensor in node.input if tensor and not index.is_fixed(tensor)]


def is_join(index: GraphIndex, node: NodeProto) -> bool:
    """Whether a node computes with the integers of several elements or tensors, as it stands in the graph."""
    operator = operators.get(node.op_type)
    if operator.merges:
        return len(data_inputs(index, node)) == 2
    return operator.averages or node.op_type == "Concat"


def additions(index: GraphIndex) -> Iterator[tuple[NodeProto, list[str]]]:
    """Every Add of two computed tensors, with the two; it is the end of a residual connection."""
    for node in index.graph.node:
        if node.op_type == "Add" and len(operands := data_inputs(index, node)) == 2:
            yield node, operands
