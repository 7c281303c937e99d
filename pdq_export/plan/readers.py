"""What is done with a tensor further down: whether a layer follows, and whether anyone makes use of its integers."""

from collections.abc import Container, Iterable

from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.nodes import data_inputs, is_join, is_passthrough


def tensors_before_layers(index: GraphIndex, layers: Container[str]) -> set[str]:
    """The tensors that the data input of a layer depends on.

    ``layers``: node names.
    """
    before: set[str] = set()
    for node in reversed(index.graph.node):
        if node.name in layers:
            before.add(node.input[0])
        elif any(tensor in before for tensor in node.output):
            before.update(data_inputs(index, node))
    return before


def tensors_passed_to(index: GraphIndex, tensors: Iterable[str]) -> set[str]:
    """``tensors``, and all tensors that pass-through nodes alone lead from to one of them."""
    found = set(tensors)
    for node in reversed(index.graph.node):
        if is_passthrough(index, node) and found.intersection(node.output):
            found.add(node.input[0])
    return found


def tensors_read_as_integers(
    index: GraphIndex, layers: Container[str], joins: Container[str], excluded: Container[str]
) -> set[str]:
    """The tensors whose integers a layer or a join reads, through pass-through nodes and activations.

    ``joins``: names of nodes. Softmax, the products of attention, recurrent layers, normalizations, ``excluded`` nodes
    and all others compute in float. To quantize what only they read would lose accuracy for nothing.
    """
    read: set[str] = set()
    for node in reversed(index.graph.node):
        inputs = data_inputs(index, node)
        if node.name in excluded:
            continue
        if node.name in layers:
            read.add(node.input[0])
        elif node.name in joins:
            read.update(inputs)
        elif operators.get(node.op_type).activation or is_passthrough(index, node):
            read.update(inputs[:1] if read.intersection(node.output) else ())
    return read


def integer_joins(index: GraphIndex, layers: Container[str], excluded: Container[str]) -> set[str]:
    """The merges, Concats and averages between integers: behind a convolution and before a layer.

    Only other joins, activations and moves lie in between. An average needs no layer behind it. All other joins stand
    between float operators, such as normalizations and the products of attention. To quantize for them would lose
    accuracy for nothing, because a Gemm or MatMul gives floats at no cost.

    ``layers`` and ``excluded``: node names. What is excluded is in float.
    """
    nodes = [node for node in index.graph.node if node.name not in excluded]
    at_hand: set[str] = set()
    for node in nodes:
        if node.name in layers:
            operator = operators.get(node.op_type)
            at_hand.update(node.output if operator.integer_kernel and not operator.float_output else ())
        elif at_hand.intersection(_carried(index, node)):
            at_hand.update(node.output)
    wanted: set[str] = set()
    joins: set[str] = set()
    for node in reversed(nodes):
        if node.name in layers:
            wanted.add(node.input[0])
        elif operators.get(node.op_type).averages or wanted.intersection(node.output):
            wanted.update(_carried(index, node))
            if is_join(index, node) and at_hand.intersection(_carried(index, node)):
                joins.add(node.name)
    return joins


def _carried(index: GraphIndex, node: NodeProto) -> list[str]:
    """The inputs whose integers a node can compute with or hand on; none of an operator in float."""
    inputs = data_inputs(index, node)
    if is_join(index, node):
        return inputs
    return inputs[:1] if operators.get(node.op_type).activation or is_passthrough(index, node) else []


def tensors_read_by_layers(index: GraphIndex, layers: Container[str], excluded: Container[str]) -> set[str]:
    """The tensors that a layer, a Concat or an average reads, directly or through pass-through nodes.

    Concats and averages that are ``excluded`` read floats.
    """

    def reads(node: NodeProto) -> bool:
        joins = node.op_type == "Concat" or operators.get(node.op_type).averages
        return node.name in layers or (joins and node.name not in excluded)

    readers = filter(reads, index.graph.node)
    return tensors_passed_to(index, (tensor for node in readers for tensor in data_inputs(index, node)))
