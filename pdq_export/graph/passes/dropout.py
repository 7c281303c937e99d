"""Dropout computes nothing in inference: it becomes Identity, which simplification removes."""

import onnx
from onnx import NodeProto

from pdq_export.graph.lookup import GraphIndex, optional_input

_INFERENCE = 7  # before this opset an attribute says whether it drops anything


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn every Dropout that is known not to drop anything, and whose mask nobody reads, into an Identity."""
    index = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type == "Dropout" and not node.domain and _keeps_everything(index, node):
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
    return model


def _keeps_everything(index: GraphIndex, node: NodeProto) -> bool:
    training, masks = optional_input(node, 2), [name for name in node.output[1:] if name]
    value = index.constant(training)
    inference = training is None or (value is not None and not value.any())
    read = any(index.consumers(name) or name in index.outputs for name in masks)
    return index.opset >= _INFERENCE and inference and not read
