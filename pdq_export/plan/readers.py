"""What is done with a tensor further down: whether a layer follows, and whether anyone makes use of its integers."""

from collections.abc import Container, Iterable

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.operators import ACTIVATIONS, AVERAGES, MERGES, data_inputs, is_passthrough


def tensors_before_layers(index: GraphIndex, layers: Container[str]) -> set[str]:
    """The tensors that a weighted layer (its data input) depends on. ``layers``: node names."""
    before: set[str] = set()
    for node in reversed(index.graph.node):
        if node.name in layers:
            before.add(node.input[0])
        elif any(tensor in before for tensor in node.output):
            before.update(data_inputs(index, node))
    return before


def tensors_passed_to(index: GraphIndex, tensors: Iterable[str]) -> set[str]:
    """``tensors`` and those from which pass-through nodes alone lead to one of them."""
    found = set(tensors)
    for node in reversed(index.graph.node):
        if is_passthrough(index, node) and found.intersection(node.output):
            found.add(node.input[0])
    return found


def tensors_read_as_integers(index: GraphIndex, layers: Container[str]) -> set[str]:
    """The tensors that reach, through pass-through nodes and activations, an operator that computes with integers.

    Those are the layers, merges of two tensors, Concat and averages. Softmax, the products of attention, recurrent
    layers, normalizations and all others compute in float: quantizing what only they read loses accuracy for nothing.
    """
    read: set[str] = set()
    for node in reversed(index.graph.node):
        inputs = data_inputs(index, node)
        merges = node.op_type in MERGES and len(inputs) == 2
        if node.name in layers:
            read.add(node.input[0])
        elif merges or node.op_type == "Concat" or node.op_type in AVERAGES:
            read.update(inputs)
        elif node.op_type in ACTIVATIONS or is_passthrough(index, node):
            read.update(inputs[:1] if read.intersection(node.output) else ())
    return read


def tensors_read_by_layers(index: GraphIndex, layers: Container[str]) -> set[str]:
    """The tensors that reach a layer, a Concat or an average as they are, through pass-through nodes alone."""
    readers = (n for n in index.graph.node if n.name in layers or n.op_type == "Concat" or n.op_type in AVERAGES)
    return tensors_passed_to(index, (tensor for node in readers for tensor in data_inputs(index, node)))
