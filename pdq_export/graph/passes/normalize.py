"""One spelling for what ONNX lets files spell in several ways."""

import onnx
import onnx.inliner

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import all_nodes
from pdq_export.graph.messages import essential_line


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write the default domain as "" and unknown axes (-1, "?") as anonymous; inline functions; tell names apart.

    Nodes of one name are what onnxruntime refuses; unnamed ones stay unnamed.
    """
    for entry in model.opset_import:
        entry.domain = _domain(entry.domain)
    for node in all_nodes(model.graph.node):
        node.domain = _domain(node.domain)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or dim.dim_param == "?":  # two "?" are not equal
                dim.Clear()
    del model.graph.value_info[:]
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model, convert_version=True)
        except Exception as error:  # RuntimeError, ValueError, ... of its C++ core
            raise ModelError(
                f"model: its functions cannot be inlined ({essential_line(error)}); expected functions that fit their "
                "calls; export the model without functions"
            ) from error
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
