"""Make a model with a fixed batch size run at any: nodes keep the batch axis instead of naming its size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph import edit
from pdq_export.graph.batch_axis import fixed_batch, follow, reshaped_sizes
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input
from pdq_export.spec import Place


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which Reshape, Expand, Resize, Concat and recurrent layers take the batch size from their input.

    It is for calibration, which draws batches of its own. The exported file keeps the batch size that the user gave.
    Constants that differ from image to image and slices of the batch axis cannot be freed and stay.
    """
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    index = GraphIndex(freed)
    batch = fixed_batch(index)
    if batch is not None:
        places = follow(index, batch).places
        for node in list(freed.graph.node):
            if not node.domain and any(name in places for name in node.input):
                _free(index, node, batch, places)
    return freed


def _free(index: GraphIndex, node: NodeProto, batch: int, places: Mapping[str, Place]) -> None:
    place = places.get(node.input[0])
    if node.op_type == "Concat":
        _free_concat(index, node, batch, places)
    elif operators.get(node.op_type).recurrent and place is not None:
        _free_states(index, node, batch, place)
    elif place is None:
        return
    elif node.op_type == "Reshape":
        _free_reshape(index, node, batch, place, places.get(node.output[0]))
    elif node.op_type == "Expand":
        _free_expand(index, node, place)
    elif node.op_type == "Resize" and attribute(node, "axes") is None:
        _free_resize(index, node, place)


def _free_reshape(index: GraphIndex, node: NodeProto, batch: int, before: Place, after: Place | None) -> None:
    """Let the axis with the images take up as many as there are, and all others be what they are."""
    wanted = index.constant(node.input[1])
    means_empty = bool(attribute(node, "allowzero", 0))
    if after is None or wanted is None or not wanted.size or (means_empty and not wanted.all()):
        return
    sizes = reshaped_sizes(index, node)
    if sizes is None:  # of what follow knows with open axes, the first one is the batch and stays
        freed = [0, *wanted[1:].tolist()]
    elif 0 in sizes:
        return
    else:
        freed = list(sizes)
        freed[after.axis] = 0 if before == after else -1  # 0 keeps
    edit.drop_attribute(node, "allowzero")
    node.input[1] = edit.add_constant(index, f"{node.input[1]}.batch", np.array(freed, np.int64))


def _free_expand(index: GraphIndex, node: NodeProto, place: Place) -> None:
    wanted, rank = index.constant(node.input[1]), index.rank(node.input[0])
    if wanted is None or rank is None or wanted.size < rank:
        return
    freed = wanted.astype(np.int64)
    freed[place.axis + wanted.size - rank] = 1  # 1 takes the other's
    node.input[1] = edit.add_constant(index, f"{node.input[1]}.batch", freed)


def _free_resize(index: GraphIndex, node: NodeProto, place: Place) -> None:
    sizes = index.constant(optional_input(node, 3))
    if sizes is not None and sizes.size > place.axis:
        node.input[3] = _sizes_with_images(index, node, (node.input[0], place.axis), sizes, place.axis)


def _free_concat(index: GraphIndex, node: NodeProto, batch: int, places: Mapping[str, Place]) -> None:
    """A constant operand, such as the class token of a transformer, is repeated for every image."""
    data = next(name for name in node.input if name in places)
    place, rank = places[data], index.rank(data) or 1
    if attribute(node, "axis", 1) % rank == place.axis:
        return
    for position, name in enumerate(node.input):
        value = index.constant(name)
        if value is not None and value.ndim == rank:
            node.input[position] = _repeated(index, node, name, value, (data, place), place.axis, batch)


def _free_states(index: GraphIndex, node: NodeProto, batch: int, place: Place) -> None:
    """Initial states that are the same for all images: [D, N, H], or [N, D, H] with batches first."""
    if not place.is_alone:
        return
    axis = 0 if attribute(node, "layout", 0) else 1
    for position in (5, 6):
        name = optional_input(node, position)
        value = index.constant(name)
        if name and value is not None and value.ndim == 3 and value.any():  # zeros need no axis
            node.input[position] = _repeated(index, node, name, value, (node.input[0], place), axis, batch)


def _repeated(
    index: GraphIndex,
    node: NodeProto,
    name: str,
    value: NDArray[Any],
    images: tuple[str, Place],
    axis: int,
    batch: int,
) -> str:
    """A constant that is the same for all images along ``axis``, for as many as there are; itself where it is not."""
    tensor, place = images
    one = value.take([0], axis)
    if not place.is_alone or value.shape[axis] != batch or (value != one).any():
        return name
    sizes = _sizes_with_images(index, node, (tensor, place.axis), np.array(value.shape), axis)
    return _insert(index, node, "Expand", [edit.add_constant(index, f"{name}.one", one), sizes], f"{name}.batch")


def _sizes_with_images(
    index: GraphIndex, node: NodeProto, images: tuple[str, int], sizes: NDArray[Any], axis: int
) -> str:
    """Nodes in front of ``node`` that compute the vector ``sizes``, at ``axis`` the length of ``images``' axis."""
    tensor, start = images
    begin, end = (
        edit.add_constant(index, f"batch.{value}", np.array([value], np.int64)) for value in (start, start + 1)
    )
    shape = _insert(index, node, "Shape", [tensor], f"{tensor}.shape")
    size = _insert(index, node, "Slice", [shape, begin, end], f"{tensor}.batch")
    parts = [sizes[:axis], None, sizes[axis + 1 :]]
    names = [
        size if part is None else edit.add_constant(index, f"{tensor}.others", part.astype(np.int64)) for part in parts
    ]
    return _insert(index, node, "Concat", names, f"{tensor}.sizes", axis=0)


def _insert(index: GraphIndex, before: NodeProto, op_type: str, inputs: list[str], wish: str, **attributes: Any) -> str:
    output = edit.fresh_name(index, wish)
    node = onnx.helper.make_node(op_type, inputs, [output], name=output, **attributes)
    position = next(i for i, candidate in enumerate(index.graph.node) if candidate is before)
    index.graph.node.insert(position, node)
    index.producer[output] = index.graph.node[position]
    return output
