"""One spelling for what ONNX lets files spell in several ways."""

import onnx
import onnx.inliner


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write the default domain as "" and unknown axes (-1, "?") as anonymous; inline local functions."""
    for entry in model.opset_import:
        entry.domain = _domain(entry.domain)
    for node in model.graph.node:
        node.domain = _domain(node.domain)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or dim.dim_param == "?":  # two "?" are not equal
                dim.Clear()
    del model.graph.value_info[:]
    return onnx.inliner.inline_local_functions(model, convert_version=True) if model.functions else model


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
