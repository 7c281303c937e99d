"""Constants in one place: Constant nodes become initializers, and initializers are no longer graph inputs."""

from typing import Any

import onnx
from onnx import NodeProto, TensorProto

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import attribute, describe


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn every Constant node into an initializer of the same name.

    Graph inputs that are initializers as well are dropped.
    """
    graph = model.graph
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            graph.initializer.append(_value(node))
        else:
            kept.append(node)
    _replace(graph.node, kept)
    constant = {tensor.name for tensor in graph.initializer}
    _replace(graph.input, [value for value in graph.input if value.name not in constant])
    model.ir_version = max(model.ir_version, 4)  # before 4, every initializer had to be an input too
    return model


def _replace(field: Any, values: list[Any]) -> None:
    copies = list(values)
    del field[:]
    field.extend(copies)


def _value(node: NodeProto) -> TensorProto:
    """The tensor of a Constant node, whichever of its attributes holds it."""
    for name, data_type, is_list in (
        ("value_float", TensorProto.FLOAT, False),
        ("value_floats", TensorProto.FLOAT, True),
        ("value_int", TensorProto.INT64, False),
        ("value_ints", TensorProto.INT64, True),
    ):
        value = attribute(node, name)
        if value is not None:
            dims = [len(value)] if is_list else []
            return onnx.helper.make_tensor(node.output[0], data_type, dims, value if is_list else [value])
    tensor = attribute(node, "value")
    if tensor is None:
        raise ModelError(
            f"{describe(node)}: holds no dense number ({', '.join(a.name for a in node.attribute)}); "
            "expected the attribute value, value_float(s) or value_int(s); re-export the model"
        )
    result = TensorProto()
    result.CopyFrom(tensor)
    result.name = node.output[0]
    return result
