"""What is done with a tensor further down: whether a layer follows, and whether anyone makes use of its integers."""

from collections.abc import Container, Iterable

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.operators import ACTIVATIONS, AVERAGES, data_inputs, is_join, is_passthrough


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


def tensors_read_as_integers(
    index: GraphIndex, layers: Container[str], joins: Container[str], excluded: Container[str]
) -> set[str]:
    """The tensors that reach, through pass-through nodes and activations, an operator that computes with integers.

    Those are the layers and the ``joins``. Softmax, the products of attention, recurrent layers, normalizations,
    ``excluded`` nodes and all others compute in float: quantizing what only they read loses accuracy for nothing.
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
        elif node.op_type in ACTIVATIONS or is_passthrough(index, node):
            read.update(inputs[:1] if read.intersection(node.output) else ())
    return read


def joins_near_layers(index: GraphIndex, layers: Container[str], excluded: Container[str]) -> set[str]:
    """The merges, Concats and averages between which and a layer nothing lies but other ones, activations and moves.

    All others stand between float operators, and to quantize for them would lose accuracy for nothing. ``layers`` and
    ``excluded``: node names; what is excluded is in float.
    """
    groups: dict[str, str] = {}  # node by node of the same group, up to the one that stands for it

    def group(name: str) -> str:
        while groups[name] != name:
            groups[name] = groups[groups[name]]
            name = groups[name]
        return name

    joins = []
    for node in index.graph.node:
        if node.name in excluded:
            continue
        joined = is_join(index, node)
        if not (joined or node.name in layers or node.op_type in ACTIVATIONS or is_passthrough(index, node)):
            continue
        groups[node.name] = node.name
        if joined:
            joins.append(node.name)
        inputs = data_inputs(index, node) if joined else node.input[:1]
        for source in (index.producer[name].name for name in inputs if name in index.producer):
            if source in groups:
                groups[group(source)] = group(node.name)
    near = {group(name) for name in groups if name in layers}
    return {name for name in joins if group(name) in near}


def tensors_read_by_layers(index: GraphIndex, layers: Container[str]) -> set[str]:
    """The tensors that reach a layer, a Concat or an average as they are, through pass-through nodes alone."""
    readers = (n for n in index.graph.node if n.name in layers or n.op_type == "Concat" or n.op_type in AVERAGES)
    return tensors_passed_to(index, (tensor for node in readers for tensor in data_inputs(index, node)))
