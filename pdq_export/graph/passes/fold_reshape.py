"""Reshape with a shape computed from its own input, ``x.view(x.size(0), -1)``, becomes Reshape with a constant.

The shape vector is evaluated symbolically: each element is an int or the symbol of a dynamic axis. An element equal to
the symbol of the same axis of Reshape's input is written 0 (keep), a last dynamic one -1 (infer). A Gather of all of a
vector's elements in their order, torch's as_strided of what is contiguous, becomes Reshape as well.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto

from pdq_export.graph import edit
from pdq_export.graph.lookup import Dimension, GraphIndex, attribute, optional_input
from pdq_export.graph.passes import tidy

Symbols = Sequence[Dimension]


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make the shapes of Reshape nodes constant where the graph determines them."""
    if not any(node.op_type in ("Reshape", "Gather") and not node.domain for node in model.graph.node):
        return model
    interface = [value.type.SerializeToString() for value in model.graph.input]
    for value in model.graph.input:
        tidy.name_axes(value)
    model = tidy.infer_shapes(model)
    index = GraphIndex(model)
    for node in model.graph.node:
        if (shape := _shape_of_all(index, node)) is not None:
            node.op_type = "Reshape"
            edit.drop_attribute(node, "axis")
        elif node.op_type == "Reshape" and not node.domain:
            known = index.constant(node.input[1])
            shape = _constant_shape(index, node) if known is None else _kept_axis(index, node, known.tolist())
        if shape is not None:
            edit.drop_attribute(node, "allowzero")  # there are no empty tensors among what is evaluated
            node.input[1] = edit.add_constant(index, f"{node.input[1]}.constant", np.array(shape, dtype=np.int64))
    for value, before in zip(model.graph.input, interface, strict=True):
        value.type.ParseFromString(before)
    return tidy.infer_shapes(tidy.remove_unused(model))


def _kept_axis(index: GraphIndex, node: NodeProto, wanted: Sequence[int]) -> Sequence[int] | None:
    """[0, ...] for [-1, ...] where axis 0 is dynamic and stays as it is, which shape inference cannot tell."""
    first, *rest = index.shape(node.input[0]) or [None]
    sizes = [size for size in rest if isinstance(size, int)]
    if (
        isinstance(first, int)
        or len(sizes) < len(rest)
        or not sizes
        or wanted[:1] != [-1]
        or min(wanted[1:], default=0) <= 0
    ):
        return None
    return [0, *wanted[1:]] if math.prod(sizes) == math.prod(wanted[1:]) else None


def _shape_of_all(index: GraphIndex, node: NodeProto) -> Sequence[int] | None:
    """The shape, not a vector, that a Gather gives to all elements of a vector in their order, where it does that."""
    if node.op_type != "Gather" or node.domain or (length := index.static_shape(node.input[0])) is None:
        return None
    places = index.constant(node.input[1])
    if len(length) != 1 or places is None or not np.array_equal(places.reshape(-1), np.arange(*length)):
        return None
    return places.shape if places.size and places.ndim > 1 else None


def _constant_shape(index: GraphIndex, node: NodeProto) -> list[int] | None:
    wanted, given = _evaluate(index, node.input[1], depth=16), index.shape(node.input[0])
    if wanted is None or any(isinstance(size, int) and size == 0 for size in wanted):
        return None
    kept = [
        0 if isinstance(size, str) and given is not None and axis < len(given) and given[axis] == size else size
        for axis, size in enumerate(wanted)
    ]
    if -1 not in kept and sum(isinstance(size, str) for size in kept) == 1:
        kept = [-1 if isinstance(size, str) else size for size in kept]
    return [size for size in kept if isinstance(size, int)] if all(isinstance(s, int) for s in kept) else None


def _evaluate(index: GraphIndex, tensor: str, depth: int) -> Symbols | None:
    """The elements of an integer scalar or vector as ints and symbols; None where one is not known."""
    value = index.constant(tensor)
    if value is not None:
        return [int(item) for item in value.reshape(-1)] if value.dtype.kind == "i" and value.ndim <= 1 else None
    node = index.producer.get(tensor)
    if node is None or node.domain or depth == 0:
        return None
    if node.op_type == "Shape":
        return _shape_slice(index, node)
    if node.op_type == "Concat":
        parts = [_evaluate(index, name, depth - 1) for name in node.input]
        return None if None in parts else [size for part in parts for size in part or ()]
    source = _evaluate(index, node.input[0], depth - 1)
    if source is None or node.op_type in ("Identity", "Cast", "Unsqueeze", "Squeeze"):
        return source
    if node.op_type == "Gather":
        return _gather(index, node, source)
    return _slice(index, node, source) if node.op_type == "Slice" else None


def _known(sizes: Symbols | None) -> Symbols | None:
    return None if sizes is None or None in sizes else sizes


def _shape_slice(index: GraphIndex, node: NodeProto) -> Symbols | None:
    shape = index.shape(node.input[0])
    return None if shape is None else _known(shape[attribute(node, "start", 0) : attribute(node, "end")])


def _gather(index: GraphIndex, node: NodeProto, source: Symbols) -> Symbols | None:
    positions = index.constant(node.input[1])
    if positions is None or positions.ndim > 1:
        return None
    wanted = [int(position) for position in positions.reshape(-1)]
    return [source[i] for i in wanted] if all(-len(source) <= i < len(source) for i in wanted) else None


def _slice(index: GraphIndex, node: NodeProto, source: Symbols) -> Symbols | None:
    if len(node.input) > 1:
        names = (optional_input(node, 1), optional_input(node, 2), optional_input(node, 4))
        starts, ends, steps = (None if name is None else _evaluate(index, name, depth=1) for name in names)
        if names[2] is not None and steps is None:
            return None
    else:
        starts, ends, steps = attribute(node, "starts"), attribute(node, "ends"), None
    if not starts or not ends or len(starts) != 1 or len(ends) != 1:
        return None
    step = steps[0] if steps else 1
    start, end = starts[0], ends[0]
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int) or step <= 0:
        return None
    return source[start:end:step]
