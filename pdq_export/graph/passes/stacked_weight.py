"""MatMul with a constant weight [1, ..., 1, K, N] reads it as [K, N], which is a layer as any other.

A stack of several matrices [B, K, N] is none: onnxruntime's integer kernel takes one scale for all of them, or one for
each column of each, but not one a column for all.
"""

import onnx
from onnx import NodeProto

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop leading axes of size 1 from the constant second operand of MatMul.

    The first operand has to have these axes too, so that nothing changes.
    """
    index = GraphIndex(model)
    squeezed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and not node.domain and _is_one_matrix(index, node):
            name = node.input[1]
            if name not in squeezed:
                value = index.constant(name)
                assert value is not None
                squeezed[name] = edit.add_constant(index, f"{name}_matrix", value.reshape(value.shape[-2:]))
            node.input[1] = squeezed[name]
    return model


def _is_one_matrix(index: GraphIndex, node: NodeProto) -> bool:
    """Whether broadcasting gives the result the same axes without the weight's leading ones."""
    weight = index.initializers.get(node.input[1])
    rank = index.rank(node.input[0])
    if weight is None or rank is None or index.is_constant(node.input[0]):
        return False
    return 2 < len(weight.dims) <= rank and all(size == 1 for size in weight.dims[:-2])
