"""Unique node names, no dead nodes, no unused initializers."""

import onnx


def remove_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop nodes whose outputs nobody reads, then initializers that nobody reads."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    return model


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a unique name: its own where it has one, else ``{op_type}_{position}``."""
    given = {node.name for node in model.graph.node}
    taken: set[str] = set()
    for position, node in enumerate(model.graph.node):
        if node.name and node.name not in taken:
            taken.add(node.name)
            continue
        stem = node.name or f"{node.op_type}_{position}"
        number, name = 0, stem
        while name in taken or (number or not node.name) and name in given:
            number += 1
            name = f"{stem}_{number}"
        node.name = name
        taken.add(name)
    return model
