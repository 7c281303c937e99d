"""Gives the batch axis back its name where shape inference, not knowing a size, has made up a new one."""

from collections.abc import Iterable

import onnx
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import Dimension, GraphIndex, attribute

# What could change how many images there are, but does so in no network.
_OF_SIZES = ("Resize", "Upsample", "Pad")


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one name for the batch axis in all shapes that can be told to have it.

    Shapes have to be inferred already. Inference gives up on a Resize or Pad of computed sizes, and on a Resize by
    factors even if axis 0 has factor 1. An Add of such a tensor and one of known batch gets yet another axis.
    """
    index = GraphIndex(model)
    given = {name: _named(name, index.shape(name) or ()) for name in index.inputs}
    known = {axis for axes in given.values() for axis in axes}
    equal: dict[str, Dimension] = {}  # made up name -> the axis that it is

    def first_axis(tensor: str) -> Dimension:
        axis = (given.get(tensor) or index.shape(tensor) or (None,))[0]
        return equal.get(axis, axis) if isinstance(axis, str) else axis

    for node in index.graph.node:
        batches = [first_axis(name) for name in _sources(index, node)]
        batch = next((axis for axis in batches if axis not in (None, 1)), next(iter(batches), None))
        for tensor in node.output if batch is not None else ():
            axis = first_axis(tensor)
            if isinstance(axis, str) and axis not in known and axis != batch:
                equal[axis] = batch
    _rename(model.graph.value_info, equal)
    return model


def _named(tensor: str, shape: Iterable[Dimension]) -> list[Dimension]:
    """The axes of an input as `tidy.name_axes` calls them."""
    return [f"{tensor}.shape[{axis}]" if size is None else size for axis, size in enumerate(shape)]


def _sources(index: GraphIndex, node: NodeProto) -> list[str]:
    """The inputs of a node whose axis 0 is that of its outputs."""
    rank = index.rank(node.output[0])
    data = [name for name in node.input if name and not index.is_constant(name)]
    if node.domain or not rank:
        return []
    operator = operators.get(node.op_type)
    if operator.per_image or node.op_type in _OF_SIZES:
        return data[:1]
    if operator.broadcasts or (node.op_type == "Concat" and attribute(node, "axis", 0) % rank != 0):
        return [name for name in data if index.rank(name) == rank]
    if node.op_type == "Slice" and len(node.input) > 3:
        axes = index.constant(node.input[3])
        return data[:1] if axes is not None and not (axes % rank == 0).any() else []
    return []


def _rename(values: Iterable[onnx.ValueInfoProto], equal: dict[str, Dimension]) -> None:
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            axis = equal.get(dim.dim_param)
            if isinstance(axis, int):
                dim.dim_value = axis
            elif axis is not None:
                dim.dim_param = axis
