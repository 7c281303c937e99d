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
        return None if input_scale is None else on_grid(layer.bias, _value(written, name), input_scale, weight.scale)
    dequantize = written.producer.get(name)
    if dequantize is None:
        return None
    integers, scale = (_value(written, tensor) for tensor in dequantize.input[:2])
    return Bias(tensor=layer.bias, integers=integers.astype(np.int32), scale=scale)


def _read_dequantized(chain: Chain) -> Weight:
    """Integers in a type of any width, or in bytes that tables unpack, before a DequantizeLinear."""
    written = chain.written
    scale = np.asarray(_value(written, chain.end.input[1]), np.float32)
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
    values = _value(written, tensor).astype(np.int16)
    unshifted = Weight(point=chain.point, integers=values, zero_point=offset, scale=scale)
    integers = np.asarray(unshifted.centered + unshifted.along_axis(learned), np.int16)
    return dataclasses.replace(unshifted, integers=integers, zero_point=learned)


def _read_floats(chain: Chain) -> Weight:
    """Floats that a Quant leaves as they are."""
    values, scale = (_value(chain.written, name) for name in chain.end.input[:2])
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
    for _ in range(_LONGEST):
        node = written.producer[index]
        if node.op_type == "Cast":
            return [_value(written, node.input[0]), *found]
        if node.op_type == "Gather":  # a plane above the main one
            index = node.input[1]
        elif (above := written.producer[node.input[1]]).op_type == "Gather":
            found = [*_planes(written, above.input[1]), *found]
            index = node.input[0]
        else:  # an offset was added
            index = node.input[0]
    raise ValueError(f"tensor {index[:100]!r} is no index of packed integers")


def _width(written: GraphIndex, table: str) -> Width:
    """The width that a table unpacks: the modulus of its digits says it."""
    digits = written.producer[written.producer[table].input[0]].input[1]
    modulus = int(_value(written, written.producer[digits].input[1]))
    return WIDTHS[modulus.bit_length() - 1]


def _value(written: GraphIndex, tensor: str) -> NDArray[Any]:
    """A constant, as it is or as a Cast of integers or a product of scales gives it; one 0 for a ConstantOfShape."""
    value = written.constant(tensor)
    if value is not None:
        return value
    node = written.producer[tensor]
    values = [_value(written, name) for name in node.input]
    if node.op_type == "Mul":
        return np.asarray(np.multiply(*values))
    if node.op_type == "Cast":
        return values[0]
    if node.op_type == "ConstantOfShape":
        return np.zeros((), np.int8)  # which broadcasts; the shape is a stranger's
    raise KeyError(tensor)


READERS: Mapping[str, Callable[[Chain], Weight]] = {"DequantizeLinear": _read_dequantized, QUANT: _read_floats}
"""By the operator whose output a layer reads as its weight; a layout that writes another one adds its reader here."""
