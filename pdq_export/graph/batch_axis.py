"""Where the images of a batch of fixed size lie in every tensor, and the nodes that take them apart or mix them.

A batch begins along axis 0. Transpose moves it, Reshape merges its axis with others and splits it again, a recurrent
layer reads it along axis 1. Sizes alone do not tell, least of all with a batch of 1: each operator says what becomes of
the axis.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input
from pdq_export.spec import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchAxes:
    """Where the images lie, and which nodes do not keep them apart.

    ``places``: by tensor name. ``blockers``: by the name of a node that takes images apart or mixes them, the reason.
    """

    places: Mapping[str, Place]
    blockers: Mapping[str, str]


class _BlockedError(Exception):
    """What a node does to images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Visit:
    index: GraphIndex
    node: NodeProto
    batch: int
    places: Mapping[str, Place]

    def place(self, position: int) -> Place | None:
        """The place of the images in an input; None if it has none."""
        return self.places.get(optional_input(self.node, position) or "")

    def rank(self, tensor: str) -> int:
        """Number of axes of a tensor.

        Raises LookupError if it is unknown. Nothing is known of what follows then.
        """
        rank = self.index.rank(tensor)
        if rank is None:
            raise LookupError(tensor)
        return rank

    def axis(self, value: int, tensor: str) -> int:
        """``value`` counted from the front, for the axes of ``tensor``."""
        return value % max(self.rank(tensor), 1)

    def everywhere(self, place: Place) -> dict[str, Place]:
        """The same place in every output."""
        return {name: place for name in self.node.output if name}


Rule = Callable[[_Visit, Place], dict[str, Place]]


def fixed_batch(index: GraphIndex) -> int | None:
    """The size of axis 0 if all inputs have the same known one, else None."""
    sizes = {shape[0] for name in index.inputs if (shape := index.shape(name))}
    batch = sizes.pop() if len(sizes) == 1 else None
    return batch if isinstance(batch, int) else None


def follow(index: GraphIndex, batch: int) -> BatchAxes:
    """Follow a batch of ``batch`` images from the inputs on.

    What follows an operator or a shape that is unknown has no place.
    """
    places = {name: Place(axis=0) for name in index.inputs if index.rank(name)}
    blockers: dict[str, str] = {}
    for node in index.graph.node:
        first = next((places[name] for name in node.input if name in places), None)
        if first is None:
            continue
        visit = _Visit(index=index, node=node, batch=batch, places=places)
        rule = _unknown if node.domain else _rule(node.op_type)
        try:
            places.update(rule(visit, first))
        except _BlockedError as blocked:
            blockers[node.name] = str(blocked)
        except (LookupError, TypeError):  # of a shape or an attribute that is not known
            continue
    return BatchAxes(places=places, blockers=blockers)


def reshaped(place: Place, before: Sequence[int], after: Sequence[int], batch: int) -> Place | None:
    """The place of the images behind a Reshape from one shape to the other; None if it cuts them up.

    Elements are in row-major order. With a batch of 1 several axes can fit. Then the old axis is taken if it counts
    images alone, else the first that does, else the first.
    """
    slower = math.prod(before[: place.axis]) * place.outer
    fits = []
    for axis, size in enumerate(after):
        outer, rest = divmod(slower, max(math.prod(after[:axis]), 1))
        inner, rest_of_axis = divmod(size, outer * batch) if outer else (0, 1)
        if rest or rest_of_axis or not inner:
            continue
        fits.append(Place(axis=axis, outer=outer, inner=inner))
    alone = [fit for fit in fits if fit.is_alone]
    return next((fit for fit in alone if fit.axis == place.axis), next(iter([*alone, *fits]), None))


def reshaped_sizes(index: GraphIndex, node: NodeProto) -> tuple[int, ...] | None:
    """The shape that a Reshape or Flatten gives, computed from its inputs; None if that is not known.

    A file may declare outputs with open axes, so declarations come second.
    """
    before, wanted = index.static_shape(node.input[0]), index.constant(optional_input(node, 1))
    if before is None or wanted is None or (int(attribute(node, "allowzero", 0)) and not wanted.all()):
        return index.static_shape(node.output[0])
    sizes = [before[axis] if size == 0 and axis < len(before) else int(size) for axis, size in enumerate(wanted)]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = math.prod(before) // max(-math.prod(sizes), 1)
    return tuple(sizes) if math.prod(sizes) == math.prod(before) and all(size >= 0 for size in sizes) else None


def _same(visit: _Visit, place: Place) -> dict[str, Place]:
    """Element by element; also operators that keep the number of axes and whose other axes do not concern images."""
    data = next(name for name in visit.node.input if name in visit.places)
    return {name: place for name in visit.node.output if name and visit.index.rank(name) in (None, visit.rank(data))}


def _unknown(visit: _Visit, place: Place) -> dict[str, Place]:
    return _same(visit, place) if place.axis == 0 else {}


def _nothing(_visit: _Visit, _place: Place) -> dict[str, Place]:
    return {}


def _per_image(visit: _Visit, place: Place) -> dict[str, Place]:
    """Convolutions and pools, which read axis 0 as images and another one as channels or positions."""
    if place.axis:
        raise _BlockedError(f"reads images along axis 0, where they lie along axis {place.axis}")
    return _same(visit, place)


def _broadcast(visit: _Visit, place: Place) -> dict[str, Place]:
    rank = max(visit.rank(name) for name in visit.node.input if name)
    found = {
        visit.places[name].along(visit.places[name].axis + rank - visit.rank(name))
        for name in visit.node.input
        if name in visit.places
    }
    if len(found) > 1:
        raise _BlockedError("its operands have the images along different axes")
    result = found.pop()
    behind = rank - result.axis
    for name in visit.node.input:
        value = visit.index.constant(name)
        if value is None or value.ndim < behind or value.shape[-behind] == 1 or visit.batch == 1:
            continue
        if (value != value.take([0], -behind)).any():
            raise _BlockedError(f"its constant {name!r} differs from image to image")
    return visit.everywhere(result)


def _transpose(visit: _Visit, place: Place) -> dict[str, Place]:
    order = attribute(visit.node, "perm") or list(reversed(range(visit.rank(visit.node.input[0]))))
    return visit.everywhere(place.along(order.index(place.axis)))


def _reshape(visit: _Visit, place: Place) -> dict[str, Place]:
    output = visit.node.output[0]
    before, after = visit.index.static_shape(visit.node.input[0]), reshaped_sizes(visit.index, visit.node)
    if before is None or after is None:
        shape = visit.index.shape(output)
        keeps = shape is not None and shape[0] == visit.batch and place == Place(axis=0)
        return {output: place} if keeps else {}
    result = reshaped(place, before, after, visit.batch)
    if result is None:
        raise _BlockedError(f"makes {list(after)} of {list(before)}, which leaves no axis with the images")
    return {output: result}


def _axes(visit: _Visit) -> list[int]:
    """The ``axes`` of Squeeze, Unsqueeze and reductions, an attribute or an input; [] where they are left out."""
    name = optional_input(visit.node, 1)
    value = visit.index.constant(name)
    if name is not None and value is None:
        raise LookupError(name)
    axes = attribute(visit.node, "axes") if value is None else value.reshape(-1).tolist()
    return [] if axes is None else list(axes)


def _squeeze(visit: _Visit, place: Place) -> dict[str, Place]:
    data = visit.node.input[0]
    shape = visit.index.shape(data)
    removed = [visit.axis(axis, data) for axis in _axes(visit)]
    if not removed:
        removed = [axis for axis, size in enumerate(shape or ()) if size == 1]
    if place.axis in removed:
        raise _BlockedError("drops the axis of the images, as there is one")
    return visit.everywhere(place.along(place.axis - sum(axis < place.axis for axis in removed)))


def _unsqueeze(visit: _Visit, place: Place) -> dict[str, Place]:
    output = visit.node.output[0]
    added = {visit.axis(axis, output) for axis in _axes(visit)}
    kept = [axis for axis in range(visit.rank(output)) if axis not in added]
    return visit.everywhere(place.along(kept[place.axis]))


def _reduce(visit: _Visit, place: Place) -> dict[str, Place]:
    data = visit.node.input[0]
    axes = {visit.axis(axis, data) for axis in _axes(visit)}
    if not axes and int(attribute(visit.node, "noop_with_empty_axes", 0)):
        return _same(visit, place)
    if not axes or place.axis in axes:
        raise _BlockedError("reduces the axis of the images")
    dropped = 0 if attribute(visit.node, "keepdims", 1) else sum(axis < place.axis for axis in axes)
    return visit.everywhere(place.along(place.axis - dropped))


def _arg(visit: _Visit, place: Place) -> dict[str, Place]:
    axis = visit.axis(attribute(visit.node, "axis", 0), visit.node.input[0])
    if axis == place.axis:
        raise _BlockedError("reduces the axis of the images")
    dropped = not attribute(visit.node, "keepdims", 1) and axis < place.axis
    return visit.everywhere(place.along(place.axis - dropped))


def _along(default: int) -> Rule:
    """Operators that compute along the one axis that their attribute names, or join or cut tensors there."""

    def rule(visit: _Visit, place: Place) -> dict[str, Place]:
        if visit.axis(attribute(visit.node, "axis", default), visit.node.input[0]) == place.axis:
            raise _BlockedError("computes across images, along their axis")
        return visit.everywhere(place)

    return rule


def _softmax(visit: _Visit, place: Place) -> dict[str, Place]:
    if visit.index.opset >= 13:
        return _along(-1)(visit, place)
    if visit.axis(attribute(visit.node, "axis", 1), visit.node.input[0]) <= place.axis:  # of all axes from there on
        raise _BlockedError("computes across images, along their axis")
    return visit.everywhere(place)


def _concat(visit: _Visit, place: Place) -> dict[str, Place]:
    if any(visit.places[name] != place for name in visit.node.input if name in visit.places):
        raise _BlockedError("its operands have the images along different axes")
    return _along(1)(visit, place)


def _slice(visit: _Visit, place: Place) -> dict[str, Place]:
    data = visit.node.input[0]
    if len(visit.node.input) > 1:
        name = optional_input(visit.node, 3)
        value = visit.index.constant(name)
        starts = visit.index.constant(visit.node.input[1])
        if (name is not None and value is None) or (name is None and starts is None):
            raise LookupError(name)
        axes = list(range(len(starts) if starts is not None else 0)) if value is None else value.tolist()
    else:
        axes = attribute(visit.node, "axes") or list(range(len(attribute(visit.node, "starts"))))
    before, after = visit.index.shape(data), visit.index.shape(visit.node.output[0])
    whole = before is not None and after is not None and before[place.axis] == after[place.axis]
    if place.axis in {visit.axis(axis, data) for axis in axes} and not whole:
        raise _BlockedError("takes some of the images")
    return visit.everywhere(place)


def _gather(visit: _Visit, place: Place) -> dict[str, Place]:
    data, indices = visit.node.input[:2]
    if data not in visit.places:
        return {visit.node.output[0]: place} if visit.axis(attribute(visit.node, "axis", 0), data) == 0 else {}
    axis = visit.axis(attribute(visit.node, "axis", 0), data)
    if axis == place.axis:
        raise _BlockedError("takes some of the images")
    return visit.everywhere(place.along(place.axis + (visit.rank(indices) - 1 if axis < place.axis else 0)))


def _matmul(visit: _Visit, place: Place) -> dict[str, Place]:
    output = visit.node.output[0]
    found = set()
    for position, contracted in ((0, 1), (1, 2)):
        operand = visit.place(position)
        if operand is None:
            continue
        behind = visit.rank(visit.node.input[position]) - operand.axis
        if behind == contracted or visit.rank(visit.node.input[position]) == 1:
            raise _BlockedError("sums over the images")
        found.add(operand.along(visit.rank(output) - behind))
    if len(found) > 1:
        raise _BlockedError("multiplies images by others")
    return visit.everywhere(found.pop())


def _gemm(visit: _Visit, place: Place) -> dict[str, Place]:
    if visit.place(0) is None:
        raise LookupError(visit.node.name)
    if place.axis != (1 if attribute(visit.node, "transA", 0) else 0):
        raise _BlockedError("sums over the images")
    return visit.everywhere(place.along(0))


def _recurrent(visit: _Visit, place: Place) -> dict[str, Place]:
    """LSTM, GRU and RNN: X is [T, N, I] and Y [T, D, N, H], or with batches first [N, T, I] and [N, T, D, H]."""
    first = attribute(visit.node, "layout", 0)
    expected = 0 if first else 1
    if place.axis != expected or visit.place(0) is None:
        raise _BlockedError(f"reads images along axis {expected}, where they lie along axis {place.axis}")
    inner = [0, 0, 0] if first else [2, 1, 1]
    return {name: place.along(axis) for name, axis in zip(visit.node.output, inner, strict=False) if name}


def _einsum(visit: _Visit, place: Place) -> dict[str, Place]:
    terms, arrow, result = attribute(visit.node, "equation").replace(" ", "").partition("->")
    if "." in terms or not arrow:
        raise LookupError(visit.node.name)
    letters = {
        term[visit.places[name].axis]
        for term, name in zip(terms.split(","), visit.node.input, strict=True)
        if name in visit.places
    }
    if len(letters) > 1 or not letters <= set(result):
        raise _BlockedError("sums over the images, or multiplies them by others")
    return visit.everywhere(place.along(result.index(letters.pop())))


def _pad(visit: _Visit, place: Place) -> dict[str, Place]:
    before, after = visit.index.shape(visit.node.input[0]), visit.index.shape(visit.node.output[0])
    if before is not None and after is not None and before[place.axis] != after[place.axis]:
        raise _BlockedError("pads the axis of the images")
    return _same(visit, place)


def _tile(visit: _Visit, place: Place) -> dict[str, Place]:
    repeats = visit.index.constant(visit.node.input[1])
    if repeats is None:
        raise LookupError(visit.node.name)
    return visit.everywhere(dataclasses.replace(place, outer=place.outer * int(repeats[place.axis])))


def _expand(visit: _Visit, place: Place) -> dict[str, Place]:
    output = visit.node.output[0]
    return {output: place.along(place.axis + visit.rank(output) - visit.rank(visit.node.input[0]))}


_RULES: dict[str, Rule] = {
    **dict.fromkeys("ConstantOfShape NonMaxSuppression NonZero Unique".split(), _nothing),
    **dict.fromkeys("If Loop Scan SequenceConstruct SplitToSequence".split(), _nothing),
    **dict.fromkeys(
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceProd ReduceSumSquare ReduceLogSum "
        "ReduceLogSumExp".split(),
        _reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    "LpNormalization": _along(-1),
    "TopK": _along(-1),
    "Split": _along(0),
    "Concat": _concat,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Gather": _gather,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Pad": _pad,
    "Tile": _tile,
    "Expand": _expand,
}


def _rule(op_type: str) -> Rule:
    operator = operators.get(op_type)
    if operator.reads_shape:
        return _nothing
    if operator.per_image:
        return _per_image
    if operator.broadcasts:
        return _broadcast
    return _recurrent if operator.recurrent else _RULES.get(op_type, _same)
