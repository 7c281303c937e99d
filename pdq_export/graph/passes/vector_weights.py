"""MatMul with a constant vector becomes MatMul with a matrix of one column and Squeeze: a layer like any other.

onnxruntime 1.31 multiplies along the wrong axis where it fuses a Transpose into a MatMul with a vector.
"""

import numpy as np
import onnx
from onnx import NodeProto

from pdq_export.graph.edit import add_constant, fresh_name, replace_node
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import tidy


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite every MatMul of a float tensor of known rank, 2 or more, with a constant vector behind it."""
    index = GraphIndex(model)
    found = [node for node in model.graph.node if _has_vector(index, node)]
    for node in found:
        vector, output = index.constant(node.input[1]), node.output[0]
        assert vector is not None
        node.input[1] = add_constant(index, f"{node.input[1]}.column", vector[:, None])
        node.output[0] = fresh_name(index, f"{output}.column")
        index.producer[node.output[0]] = node
        squeeze = onnx.helper.make_node("Squeeze", [node.output[0]], [output])
        squeeze.name = f"{node.name}.squeeze" if node.name else ""
        if index.opset < 13:
            squeeze.attribute.append(onnx.helper.make_attribute("axes", [(index.rank(node.input[0]) or 0) - 1]))
        else:
            squeeze.input.append(add_constant(index, f"{output}.axes", np.array([-1], np.int64)))
        replace_node(model.graph, node, [node, squeeze])
    return tidy.infer_shapes(tidy.remove_unused(model)) if found else model


def _has_vector(index: GraphIndex, node: NodeProto) -> bool:
    if node.op_type != "MatMul" or node.domain or index.is_constant(node.input[0]):
        return False
    vector, rank = index.constant(node.input[1]), index.rank(node.input[0])
    return vector is not None and vector.ndim == 1 and vector.dtype == np.float32 and rank is not None and rank > 1
