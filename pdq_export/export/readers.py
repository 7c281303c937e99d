"""The constants of layers, read back from a written graph, whichever layout it has.

Nothing is run: integers are unpacked as they lie in the initializers, and what makes them a float weight again is told
by the operators on the way. How a chain is read follows from the operator that ends it, see `READERS`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export.export.constants import Bias, Weight
from pdq_export.export.packing import WIDTHS, Width, from_rows, unpack
from pdq_export.export.qonnx_constants import QUANT
from pdq_export.export.qonnx_constants import read_bias as on_grid
from pdq_export.export.qonnx_constants import read_weight as from_floats
from pdq_export.graph.lookup import GraphIndex, optional_input
from pdq_export.spec import Layer, Point

_LONGEST = 8  # nodes between the operator that ends a chain and its integers, at most
_MOST_PLANES = max(len(width.planes) for width in WIDTHS.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """What ends the chain of a weight in a written graph, and what is known of the weight.

    ``shape``: of the weight. ``zero_point``: as it was learned, [] or [C].
    """

    written: GraphIndex
    end: NodeProto
    point: Point
    shape: tuple[int, ...]
    zero_point: NDArray[np.int16]

    @property
    def channels(self) -> tuple[int, ...]:
        """The shape of the scale: [] or [C]."""
        return () if self.point.axis is None else (self.shape[self.point.axis],)


def read_weight(
    written: GraphIndex, layer: Layer, point: Point, *, shape: tuple[int, ...], zero_point: NDArray[np.int16]
) -> Weight:
    """The weight of ``layer`` as ``written`` has it; ``shape`` and ``zero_point`` as in `Chain`.

    Raises LookupError or ValueError for a chain that no layout writes.
    """
    end = written.producer[written.nodes[layer.node].input[1]]
    return READERS[end.op_type](Chain(written=written, end=end, point=point, shape=shape, zero_point=zero_point))


def read_bias(written: GraphIndex, layer: Layer, weight: Weight, input_scale: np.float32 | None) -> Bias | None:
    """The integer bias of ``layer``, if it has one.

    ``weight``: of the layer; ``input_scale``: of its input, if that is quantized. Both are asked where biases are
    floats on the grid of their product; one that stays in float keeps its name.
    """
    node = written.nodes[layer.node]
    name = optional_input(node, 2)
    if layer.bias is None or name in (None, "", layer.bias):
        return None
    if written.producer[node.input[1]].op_type == QUANT:
        if input_scale is None:
            return None
        values = _constant(written, name)
        _check_shape("a bias", values, weight.scale.shape or (values.size,))
        return on_grid(layer.bias, values, input_scale, weight.scale)
    dequantize = written.producer.get(name)
    if dequantize is None:
        return None
    integers, scale = (_value(written, tensor) for tensor in dequantize.input[:2])
    _check_shape("a bias", integers, (scale.size,))
    return Bias(tensor=layer.bias, integers=integers.astype(np.int32), scale=scale)


def _read_dequantized(chain: Chain) -> Weight:
    """Integers in a type of any width, or in bytes that tables unpack, before a DequantizeLinear."""
    written = chain.written
    scale = np.asarray(_constant(written, chain.end.input[1]), np.float32)
    _check_shape("a scale", scale, chain.channels)
    learned = np.broadcast_to(chain.zero_point, scale.shape)
    offset = np.broadcast_to(_value(written, chain.end.input[2]), scale.shape).astype(np.int16)
    tensor = chain.end.input[0]
    for _ in range(_LONGEST):
        if tensor not in written.producer:
            break
        node = written.producer[tensor]
        if node.op_type == "Gather":
            integers = _read_packed(chain, node)
            return Weight(point=chain.point, integers=integers, zero_point=learned, scale=scale)
        if node.op_type == "Sub":
            offset = offset + _value(written, node.input[1]).astype(np.int16).reshape(offset.shape)
        tensor = node.input[0]
    values = _constant(written, tensor)
    _check_shape("a weight", values, chain.shape)
    values = values.astype(np.int16)
    unshifted = Weight(point=chain.point, integers=values, zero_point=offset, scale=scale)
    integers = np.asarray(unshifted.centered + unshifted.along_axis(learned), np.int16)
    return dataclasses.replace(unshifted, integers=integers, zero_point=learned)


def _read_floats(chain: Chain) -> Weight:
    """Floats that a Quant leaves as they are."""
    values, scale = (_constant(chain.written, name) for name in chain.end.input[:2])
    _check_shape("a weight", values, chain.shape)
    _check_shape("a scale", scale, tuple(n if axis == chain.point.axis else 1 for axis, n in enumerate(chain.shape)))
    return from_floats(values, scale, chain.point, chain.zero_point)


def _read_packed(chain: Chain, gather: NodeProto) -> NDArray[np.int16]:
    """The integers whose planes are looked up in a table by ``gather``."""
    planes = _planes(chain.written, gather.input[1])
    length, left = divmod(math.prod(chain.shape), len(planes[0]))
    if left:
        raise ValueError(f"{len(planes[0])} rows of {chain.shape}")
    rows = unpack(planes, _width(chain.written, gather.input[0]), length) + np.int16(chain.point.qmin)
    return from_rows(rows, chain.shape, chain.point.axis)


def _planes(written: GraphIndex, index: str) -> list[NDArray[Any]]:
    """The bytes that make up an index, the main plane first."""
    found: list[NDArray[Any]] = []
    for _ in range(_MOST_PLANES):
        node = written.producer[index]
        above = written.producer.get(node.input[1]) if node.op_type == "Add" else None
        if above is None or above.op_type != "Gather":
            return [_plane(written, index), *found]
        found.insert(0, _plane(written, above.input[1]))
        index = node.input[0]
    raise ValueError(f"tensor {index[:100]!r} is no index of packed integers")


def _plane(written: GraphIndex, index: str) -> NDArray[Any]:
    """The bytes of one plane, to which an offset may have been added."""
    node = written.producer[index]
    if node.op_type == "Add":
        node = written.producer[node.input[0]]
    if node.op_type != "Cast":
        raise ValueError(f"tensor {index[:100]!r} is no plane of packed integers")
    return _constant(written, node.input[0])


def _width(written: GraphIndex, table: str) -> Width:
    """The width that a table unpacks: the modulus of its digits says it."""
    digits = written.producer[written.producer[table].input[0]].input[1]
    modulus = int(_value(written, written.producer[digits].input[1]))
    return WIDTHS[modulus.bit_length() - 1]


def _value(written: GraphIndex, tensor: str) -> NDArray[Any]:
    """A constant, as it is or as one node gives it: a Cast of integers, a product with a scale of a tensor, zeros.

    It is as large as a constant of the file: what is read here is a stranger's.
    """
    node = written.producer.get(tensor)
    if node is None:
        return _constant(written, tensor)
    if node.op_type == "ConstantOfShape":
        return np.zeros((), np.int8)  # which broadcasts
    first, *others = (_constant(written, name) for name in node.input)
    if node.op_type == "Cast":
        return first
    if node.op_type == "Mul" and first.ndim == 0:
        return np.asarray(first * others[0])
    raise ValueError(f"tensor {tensor[:100]!r} is none of the constants of a layer")


def _constant(written: GraphIndex, tensor: str) -> NDArray[Any]:
    value = written.constant(tensor)
    if value is None:
        raise KeyError(tensor)
    return value


def _check_shape(what: str, value: NDArray[Any], *expected: tuple[int, ...]) -> None:
    """Raise ValueError for another shape than one of those expected, before anything is computed with the value."""
    if value.shape not in expected:
        raise ValueError(f"{what} has shape {list(value.shape)}; expected {' or '.join(map(str, map(list, expected)))}")


READERS: Mapping[str, Callable[[Chain], Weight]] = {"DequantizeLinear": _read_dequantized, QUANT: _read_floats}
"""By the operator whose output a layer reads as its weight; a layout that writes another one adds its reader here."""
