"""Make a model with a fixed batch size run at any: nodes keep the batch axis instead of naming its size."""

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which Reshape, Expand, Resize and Concat take the batch size from their input.

    For calibration only, which draws batches of its own; the exported file keeps the batch size that the user gave.
    What cannot be freed is left as it is: constants that differ from image to image, slices of the batch axis.
    """
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    batch = fixed_batch(freed)
    if batch is not None:
        index = GraphIndex(freed)
        for node in list(freed.graph.node):
            _free(index, node, batch)
    return freed


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The size of axis 0 where all inputs have the same known one, else None."""
    index = GraphIndex(model)
    sizes = {shape[0] for name in index.inputs if (shape := index.shape(name))}
    batch = sizes.pop() if len(sizes) == 1 else None
    return batch if isinstance(batch, int) else None


def _free(index: GraphIndex, node: NodeProto, batch: int) -> None:
    if node.domain:
        return
    if node.op_type == "Concat":
        _free_concat(index, node, batch)
    elif _starts_with(index, node.input[0] if node.input else "", batch):
        if node.op_type == "Reshape" and not attribute(node, "allowzero", 0):
            _replace_size(index, node, 1, batch, 0)  # 0 keeps
        elif node.op_type == "Expand":
            _replace_size(index, node, 1, batch, 1)  # 1 takes the other's
        elif node.op_type == "Resize" and attribute(node, "axes") is None:
            _free_resize(index, node, batch)


def _starts_with(index: GraphIndex, tensor: str, batch: int) -> bool:
    shape = index.shape(tensor)
    return bool(shape) and shape is not None and shape[0] == batch


def _replace_size(index: GraphIndex, node: NodeProto, position: int, batch: int, size: int) -> None:
    wanted = index.constant(node.input[position])
    rank = index.rank(node.input[0])
    if wanted is not None and wanted.size and wanted[0] == batch and (node.op_type != "Expand" or rank == wanted.size):
        freed = np.array([size, *wanted[1:]], dtype=np.int64)
        node.input[position] = edit.add_constant(index, f"{node.input[position]}.batch", freed)


def _free_resize(index: GraphIndex, node: NodeProto, batch: int) -> None:
    sizes = index.constant(optional_input(node, 3))
    if sizes is not None and sizes.size and sizes[0] == batch:
        node.input[3] = _with_batch_of(index, node, node.input[0], [int(size) for size in sizes[1:]])


def _free_concat(index: GraphIndex, node: NodeProto, batch: int) -> None:
    """A constant operand, such as the class token of a transformer, is repeated for every image."""
    data = next((name for name in node.input if not index.is_constant(name) and _starts_with(index, name, batch)), None)
    if data is None or attribute(node, "axis", 1) in (0, -(index.rank(data) or 0)):
        return
    for position, name in enumerate(node.input):
        value = index.constant(name)
        if value is not None and value.ndim and len(value) == batch and (value == value[:1]).all():
            one = edit.add_constant(index, f"{name}.one", value[:1])
            shape = _with_batch_of(index, node, data, [1] * (value.ndim - 1))
            node.input[position] = _insert(index, node, "Expand", [one, shape], f"{name}.batch")


def _with_batch_of(index: GraphIndex, node: NodeProto, tensor: str, rest: list[int]) -> str:
    """Nodes in front of ``node`` that compute the vector [batch of ``tensor``, *rest]."""
    zero, one = (edit.add_constant(index, f"batch.{value}", np.array([value], np.int64)) for value in (0, 1))
    shape = _insert(index, node, "Shape", [tensor], f"{tensor}.shape")
    size = _insert(index, node, "Slice", [shape, zero, one], f"{tensor}.batch")
    others = edit.add_constant(index, f"{tensor}.others", np.array(rest, np.int64))
    return _insert(index, node, "Concat", [size, others], f"{tensor}.sizes", axis=0)


def _insert(index: GraphIndex, before: NodeProto, op_type: str, inputs: list[str], wish: str, **attributes: Any) -> str:
    output = edit.fresh_name(index, wish)
    node = onnx.helper.make_node(op_type, inputs, [output], name=output, **attributes)
    position = next(i for i, candidate in enumerate(index.graph.node) if candidate is before)
    index.graph.node.insert(position, node)
    index.producer[output] = index.graph.node[position]
    return output
