"""Outputs that are several things in one tensor, as a detector's boxes in pixels and scores between 0 and 1.

Measured over the whole tensor, a difference of the larger numbers hides any of the others. Joined levels of a pyramid
are the same thing more than once, and no parts.
"""

import itertools

from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.plan.nodes import data_inputs
from pdq_export.spec import OutputPart

_MOST = 8  # parts; what has more is a tensor of features


def find_parts(index: GraphIndex) -> dict[str, tuple[OutputPart, ...]]:
    """The parts of every output that has some.

    A Concat makes such an output of tensors of known size along its axis.
    """
    found = {}
    for output in index.outputs:
        parts = _parts(index, output)
        if parts and 1 < len({(part.start, part.stop) for part in parts}) <= _MOST:
            found[output] = parts
    return found


def _parts(index: GraphIndex, tensor: str) -> tuple[OutputPart, ...]:
    """The parts of a tensor, through what leaves its axes in their places or moves them as a whole."""
    node, shape = index.producer.get(tensor), index.shape(tensor)
    if node is None or not shape or node.domain:
        return ()
    inputs = data_inputs(index, node)
    if node.op_type == "Concat":
        return _joined(index, node, attribute(node, "axis", 0) % len(shape))
    if not inputs or index.rank(inputs[0]) is None:
        return ()
    if node.op_type == "Transpose":
        order = attribute(node, "perm") or list(range(len(shape)))[::-1]
        return tuple(part.at(order.index(part.axis)) for part in _parts(index, inputs[0]))
    if node.op_type == "Reshape":  # [N, 3, H, W, parts] to [N, 3 H W, parts]
        inner = _parts(index, inputs[0])
        known = (index.shape(inputs[0]) or (None,))[-1]
        keeps = known is not None and shape[-1] == known
        return tuple(p.at(len(shape) - 1) for p in inner if keeps and p.axis == len(index.shape(inputs[0]) or ()) - 1)
    operator = operators.get(node.op_type)
    keeps_places = operator.activation or node.op_type in ("Identity", "Cast")
    if keeps_places or (operator.merges and len(inputs) == 1):
        return _parts(index, inputs[0])
    return ()


def _joined(index: GraphIndex, node: NodeProto, axis: int) -> tuple[OutputPart, ...]:
    levels = [_parts(index, name) for name in node.input]
    places = [[(part.axis, part.start, part.stop) for part in level] for level in levels]
    if places[0] and places[0][0][0] != axis and all(place == places[0] for place in places):
        return tuple(itertools.chain.from_iterable(levels))
    sizes = [(index.shape(name) or {axis: None})[axis] for name in node.input]
    if axis == 0 or any(_is_level(index, name, axis) for name in node.input):
        return ()
    parts, start = [], 0
    for name, size in zip(node.input, sizes, strict=True):
        if not isinstance(size, int):
            return ()
        if not index.is_fixed(name):
            parts.append(OutputPart(tensor=name, axis=axis, start=start, stop=start + size))
        start += size
    return tuple(parts)


def _is_level(index: GraphIndex, tensor: str, axis: int) -> bool:
    """Whether an axis of a tensor has been made of others, height and width say."""
    node = index.producer.get(tensor)
    if node is None:
        return False
    if node.op_type == "Transpose":
        rank = len(index.shape(tensor) or ())
        order = attribute(node, "perm") or range(rank)[::-1]
        return axis < len(order) and _is_level(index, node.input[0], order[axis])
    before, after = index.shape(node.input[0]) or (), index.shape(tensor) or ()
    return node.op_type in ("Reshape", "Flatten") and axis < len(after) and after[axis] not in before
