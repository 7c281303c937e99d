"""A weight whose output channels count along one axis for one layer and along another for the next becomes two.

A tensor has one scale a channel. onnxsim makes equal constants one, so that a file cannot help it.
"""

import onnx

from pdq_export.graph.edit import add_constant, output_axis
from pdq_export.graph.lookup import GraphIndex, is_layer


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give layers that count output channels along another axis than the first reader a copy of their weight."""
    index = GraphIndex(model)
    copies: dict[str, dict[int, str]] = {}
    for node in model.graph.node:
        if not is_layer(index, node):
            continue
        weight, axis = node.input[1], output_axis(index, node)
        names = copies.setdefault(weight, {axis: weight})
        if axis not in names:
            value = index.constant(weight)
            assert value is not None
            names[axis] = add_constant(index, f"{weight}.{node.op_type}", value)
        node.input[1] = names[axis]
    return model
