"""One spelling for what ONNX lets files spell in several ways."""

import itertools

import onnx

from pdq_export.graph.lookup import all_nodes
from pdq_export.graph.passes import inline


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Bring a model into the form that all other passes read.

    The default domain is written as "", unknown axes (-1, "?") are anonymous, functions are inlined, and nodes of one
    name, which onnxruntime refuses, get distinct ones. Nodes without a name stay so.
    """
    parts = (model.graph, *model.functions)
    for entry in itertools.chain(model.opset_import, *(function.opset_import for function in model.functions)):
        entry.domain = _domain(entry.domain)
    for node in itertools.chain.from_iterable(all_nodes(part.node) for part in parts):
        node.domain = _domain(node.domain)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or dim.dim_param == "?":  # two "?" are not equal
                dim.Clear()
    del model.graph.value_info[:]
    model = inline.run(model)
    _tell_names_apart(model)
    return model


def _tell_names_apart(model: onnx.ModelProto) -> None:
    reserved = {node.name for node in model.graph.node}
    taken = {""}
    for node in model.graph.node:
        stem, number = node.name, 0
        while stem and node.name in taken:
            number += 1
            wish = f"{stem}_{number}"
            node.name = wish if wish not in reserved else stem
        taken.add(node.name)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
