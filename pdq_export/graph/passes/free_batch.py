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
        rows: dict[str, int] = {}
        for node in list(freed.graph.node):
            _free(index, node, batch, rows)
    return freed


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The size of axis 0 where all inputs have the same known one, else None."""
    index = GraphIndex(model)
    sizes = {shape[0] for name in index.inputs if (shape := index.shape(name))}
    batch = sizes.pop() if len(sizes) == 1 else None
    return batch if isinstance(batch, int) else None


def _free(index: GraphIndex, node: NodeProto, batch: int, rows: dict[str, int]) -> None:
    """``rows``: of tensors whose axis 0 was merged with others, how many of its elements are one image's."""
    if node.domain:
        return
    if node.op_type == "Concat":
        _free_concat(index, node, batch)
        if attribute(node, "axis", 1) in (0, -(index.rank(node.output[0]) or 0)):
            return
    data = node.input[0] if node.input else ""
    known = next((rows[name] for name in node.input if name in rows), None)
    if known is None and _starts_with(index, data, batch):
        known = 1
    if known is None:
        return
    if node.op_type == "Reshape":
        _free_reshape(index, node, batch, batch * known)
    elif node.op_type == "Expand":
        _free_expand(index, node, batch * known)
    elif node.op_type == "Resize" and attribute(node, "axes") is None:
        _free_resize(index, node, batch)
    merges = node.op_type in ("Reshape", "Flatten")
    for output in node.output:
        first = (index.shape(output) or (None,))[0]
        if isinstance(first, int) and (first == batch * known or (merges and first % batch == 0)):
            rows[output] = first // batch


def _starts_with(index: GraphIndex, tensor: str, batch: int) -> bool:
    shape = index.shape(tensor)
    return bool(shape) and shape is not None and shape[0] == batch


def _free_reshape(index: GraphIndex, node: NodeProto, batch: int, first: int) -> None:
    """Let axis 0, ``first`` elements long, stay as it is, or take up the images where others are merged with it."""
    wanted = index.constant(node.input[1])
    means_empty = bool(attribute(node, "allowzero", 0))
    if wanted is None or not wanted.size or (means_empty and not wanted.all()):
        return
    if wanted[0] == first:
        freed = [0, *wanted[1:]]  # 0 keeps
    else:
        sizes = wanted.tolist() if (wanted > 0).all() else index.static_shape(node.output[0])
        if sizes is None or sizes[0] % batch or not all(sizes):
            return
        freed = [-1, *sizes[1:]]
    edit.drop_attribute(node, "allowzero")
    node.input[1] = edit.add_constant(index, f"{node.input[1]}.batch", np.array(freed, np.int64))


def _free_expand(index: GraphIndex, node: NodeProto, batch: int) -> None:
    wanted = index.constant(node.input[1])
    if wanted is not None and wanted.size == index.rank(node.input[0]) and wanted[0] == batch:
        freed = np.array([1, *wanted[1:]], np.int64)  # 1 takes the other's
        node.input[1] = edit.add_constant(index, f"{node.input[1]}.batch", freed)


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
