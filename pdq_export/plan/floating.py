"""What stays in float under a plan, and why: from the graph, by what onnxruntime has integer kernels for."""

import dataclasses
from collections.abc import Container, Iterator

from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex, is_layer, optional_input
from pdq_export.plan.nodes import data_inputs, is_absorbable, is_passthrough
from pdq_export.spec import Layer, Plan

EXCLUDED = "excluded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatNode:
    """A node that computes in float, and the reason in words."""

    node: str
    op_type: str
    reason: str


def find_floating(index: GraphIndex, plan: Plan) -> tuple[FloatNode, ...]:
    """The nodes that compute in float, in graph order.

    Nodes that compute integers, or with sizes, are left out.
    """
    return tuple(_floating(index, plan, index.visible(plan.tail) | plan.read_unquantized))


def find_left_out(index: GraphIndex, plan: Plan) -> tuple[FloatNode, ...]:
    """The nodes that a runtime is not asked about: those excluded and those behind the quantized part.

    It is for runtimes that decide on all others by themselves.
    """
    found = find_floating(index, plan)
    return tuple(node for node in found if node.reason == EXCLUDED or node.node in plan.tail)


def _floating(index: GraphIndex, plan: Plan, visible: Container[str]) -> Iterator[FloatNode]:
    layers = {layer.node: layer for layer in plan.layers}
    excluded = {*(layer.node for layer in plan.excluded), *plan.excluded_nodes}
    absorbed = {point.absorbed for point in plan.points.values() if point.tensor not in visible}
    for node in index.graph.node:
        if node.name in plan.tail:
            yield FloatNode(node=node.name, op_type=node.op_type, reason=plan.tail[node.name])
            continue
        if node.name in absorbed or node.output[0] in plan.passthrough or not _is_float(index, node):
            continue
        if node.output[0] in plan.ramps and node.output[0] not in visible:
            continue  # a Clip of integers; `quantize` leaves ramps out whose source has no scale that fits
        if node.name in excluded:
            reason = EXCLUDED
        elif node.name in layers:
            reason = _layer_reason(index, plan, visible, layers[node.name])
        else:
            reason = _reason(index, plan, visible, node)
        if reason:
            yield FloatNode(node=node.name, op_type=node.op_type, reason=reason)


def _is_float(index: GraphIndex, node: NodeProto) -> bool:
    dtype = index.dtype(node.output[0])
    return (dtype is None or dtype.kind == "f") and node.output[0] not in index.sized


def _layer_reason(index: GraphIndex, plan: Plan, visible: Container[str], layer: Layer) -> str:
    node, operator = index.nodes[layer.node], operators.get(layer.op_type)
    if not operator.integer_kernel:
        return f"onnxruntime has no integer kernel for {layer.op_type}; its weight is quantized"
    bias = optional_input(node, 2)
    if bias is not None and layer.bias is None:
        return "its bias is computed; its weight is quantized"
    if not operator.float_output and not _is_quantized(index, plan, visible, layer.output):
        return "its output is not quantized, as the network's outputs are not; its weight is quantized"
    return ""


def _reason(index: GraphIndex, plan: Plan, visible: Container[str], node: NodeProto) -> str:
    if is_layer(index, node):
        return "a mean under the probabilities of a Softmax, no layer"
    if operators.get(node.op_type).weighted:
        return _unweighted_reason(index, node)
    if node.op_type == "BatchNormalization":
        return "no layer before it to fold it into"
    if is_absorbable(index, node):
        return "no integer layer before it that would absorb it"
    if is_passthrough(index, node):
        return "what it passes on is not quantized"
    if not operators.get(node.op_type).integer_kernel:
        return f"onnxruntime has no integer kernel for {node.op_type}"
    if not _is_quantized(index, plan, visible, node.output[0]):
        return "its output is not quantized"
    return "" if all(plan.source(tensor) for tensor in data_inputs(index, node)) else "an input of it is not quantized"


def _unweighted_reason(index: GraphIndex, node: NodeProto) -> str:
    """Why a Conv, ConvTranspose, Gemm or MatMul is no layer."""
    if node.op_type != "MatMul":
        return "its weight is computed"
    if index.is_constant(node.input[0]):
        return "its constant is the first operand; a layer has it as the second"
    value = index.initializers.get(node.input[1])
    if value is None:
        return "no operand is a constant matrix or kernel"
    if len(value.dims) < 2:
        return "its constant is a vector; a layer has a matrix"
    return "its constant is a stack of matrices, for which onnxruntime has no integer kernel with scales per channel"


def _is_quantized(index: GraphIndex, plan: Plan, visible: Container[str], tensor: str) -> bool:
    """Whether a tensor has integers alone, or an activation that absorbs into them reads it alone."""
    if plan.source(tensor) is not None:
        return tensor not in visible
    reader = index.sole_consumer(tensor)
    return reader is not None and any(
        point.absorbed == reader.name and point.tensor not in visible
        for point in (plan.points.get(name) for name in reader.output)
        if point
    )
