"""The nodes that unpack weights: tables of INT8, looked up by the indices of `pdq_export.export.packing`.

Everything is opset 13 and made of constants, so that runtimes fold it when they load the file and then see INT8 weights
with zero_point 0. Once in a file, for every width b in use (zs: the Z zero points of its weights, T = 2^(b * g)):

    fields [T, g]         Mod(Div(Range(T), 2^(b * k)), 2^b)
    table [Z * T, g]      Gather(Cast INT8(Range(2^b) - zs), fields), where [z * T + index, k] is field k, less zs[z]
    offsets [C, 1] each   Split(Mul or Gather(zero points of all its weights)):  256 * z, for the rows of a weight

and for every plane of e bits that starts at bit s of the index, INT32, the last one with z in it, since it is shorter
than the main plane:

    plane [256, 8 / e]            fields of a byte << s
    plane [Z * 256, *tail]        z * T + fields of a byte << s

Then a weight is, rows [R, n] as said there, m bytes of the last plane a row:

    Cast INT32 [R, m, *tail] of the main plane
    (further planes: Cast INT32 [R, m, ..] -> (the last: Add its offsets) -> Gather(plane) [R, m, *tail] -> Add)
    (of one plane: Add its offsets)
    Gather(table) INT8 [R, m, *tail, g]
    (rows that are filled up: Reshape [R, ..] -> Slice [R, n])
    Reshape to the weight's shape (channels on another axis than the first: with them first, and Transpose)

What runtimes keep until all is folded is the sum of these: for b = 4, say, 2 + 2 + 1 + 1 bytes a weight.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from pdq_export.export.constants import Weight
from pdq_export.export.packing import WIDTHS, Packable, Width, choose_widths, pack, to_rows
from pdq_export.export.storage import pack as pack_flat
from pdq_export.export.writer import GraphWriter

_Key = tuple[str, bytes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Packed:
    """A weight that is stored with ``bits`` bits."""

    weight: Weight
    packable: Packable
    bits: int

    @property
    def name(self) -> str:
        return self.weight.point.tensor

    @property
    def planes(self) -> list[NDArray[np.uint8]]:
        unsigned = (self.weight.integers - self.weight.point.qmin).astype(np.int16)
        return pack(to_rows(unsigned, self.packable.axis, self.packable.rows), WIDTHS[self.bits])

    @property
    def zero_points(self) -> NDArray[np.int16]:
        """The zero point of each row, less qmin, [R]."""
        rows = self.weight.zero_point.reshape(-1)[: self.packable.rows]
        return (rows - self.weight.point.qmin).astype(np.int16)


class Unpacking:
    """Writes packed weights, and before the first of a width what all of that width share.

    ``weights``: all that there are; those of them that lie in fewer bytes as INT8 are not in it.
    """

    def __init__(self, out: GraphWriter, weights: Iterable[Weight]) -> None:
        self._out = out
        found = {weight.key: weight for weight in weights}
        packable = [Packable.of(w.integers.shape, w.point.axis, w.point.bits, w.zero_point) for w in found.values()]
        chosen = zip(found.items(), packable, choose_widths(packable), strict=True)
        self._weights = {
            key: _Packed(weight=weight, packable=packable, bits=bits)
            for (key, weight), packable, bits in chosen
            if bits < 8
        }
        self._shared: dict[int, _SharedTables] = {}
        self._planes: dict[tuple[int, int], str] = {}
        self._digits: dict[tuple[int, int], str] = {}
        self._ranges: dict[int, str] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._weights

    def write(self, key: _Key) -> str:
        """Write the weight of ``key``. Returns the name of its INT8 integers less the zero point."""
        out, weight = self._out, self._weights[key]
        width, packable, name = WIDTHS[weight.bits], weight.packable, weight.name
        if width.bits not in self._shared:
            self._shared[width.bits] = self._write_shared(width)
        index = self._index(key, weight, self._shared[width.bits])
        tensor = out.node("Gather", [self._shared[width.bits].table, index], f"{name}_row")
        if packable.padded(width):
            tensor = out.node("Reshape", [tensor, out.int64(packable.rows, -1)], f"{name}_padded")
            bounds = [out.int64(0), out.int64(packable.length), out.int64(1)]
            tensor = out.node("Slice", [tensor, *bounds], f"{name}_cut")
        shape = list(packable.shape)
        if not packable.transposed:
            return out.node("Reshape", [tensor, out.int64(*shape)], f"{name}_int8")
        axis = packable.axis or 0
        first = out.int64(shape[axis], *shape[:axis], *shape[axis + 1 :])
        tensor = out.node("Reshape", [tensor, first], f"{name}_moved")
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        return out.node("Transpose", [tensor], f"{name}_int8", perm=order)

    def _index(self, key: _Key, weight: _Packed, shared: "_SharedTables") -> str:
        """Rows of the table, INT32 [R, m, *tail]."""
        out, width = self._out, WIDTHS[weight.bits]
        index, last = "", len(width.planes) - 1
        for number, (plane, bits, table) in enumerate(zip(weight.planes, width.planes, shared.planes, strict=True)):
            suffix = "" if bits == 8 else f"_high{bits}"
            stored = out.constant(f"{weight.name}_quantized{suffix}", plane)
            part = out.node("Cast", [stored], f"{weight.name}_byte{suffix}", to=TensorProto.INT32)
            if number == last and key in shared.offsets:
                part = out.node("Add", [part, shared.offsets[key]], f"{weight.name}_at{suffix}")
            if bits < 8:
                part = out.node("Gather", [table, part], f"{weight.name}_part{bits}")
            index = out.node("Add", [index, part], f"{weight.name}_sum") if index else part
        return index

    # What weights of one width share

    def _write_shared(self, width: Width) -> "_SharedTables":
        weights = {key: weight for key, weight in self._weights.items() if weight.bits == width.bits}
        zero_points = np.unique(np.concatenate([weight.zero_points for weight in weights.values()]))
        numbers = {key: np.searchsorted(zero_points, weight.zero_points) for key, weight in weights.items()}
        return _SharedTables(
            table=self._table(width, zero_points),
            planes=[self._plane(width, number, len(zero_points)) for number in range(len(width.planes))],
            offsets=self._offsets(width, {key: rows for key, rows in numbers.items() if rows.any()}, len(zero_points)),
        )

    def _table(self, width: Width, zero_points: NDArray[np.int16]) -> str:
        out, name, bits = self._out, f"int{width.bits}", width.bits
        digits = self._fields(bits * width.group, bits)
        zeros = out.constant(f"{name}_zero_points", zero_points.astype(np.int32)[:, None])
        values = out.node("Sub", [self._range(1 << bits), zeros], f"{name}_centered")
        values = out.node("Cast", [values], f"{name}_centered_int8", to=TensorProto.INT8)
        table = out.node("Gather", [values, digits], f"{name}_tables", axis=1)
        return out.node("Reshape", [table, out.int64(-1, width.group)], f"{name}_table")

    def _plane(self, width: Width, number: int, zero_points: int) -> str:
        """The table of a plane's bytes; "" for the main one, whose bytes are the lowest bits of an index themselves."""
        bits, shift = width.planes[number], width.shifts[number]
        if bits == 8:
            return ""
        table = self._byte_table(bits, shift)
        if number < len(width.planes) - 1:
            return table
        out, name = self._out, f"int{width.bits}_high{bits}"
        if zero_points > 1:
            steps = (np.arange(zero_points, dtype=np.int32) << width.bits * width.group)[:, None, None]
            table = out.node("Add", [out.constant(f"{name}_steps", steps), table], f"{name}_of_zero")
        if zero_points > 1 or len(width.tail) > 1:
            table = out.node("Reshape", [table, out.int64(-1, *width.tail)], f"{name}_table")
        return table

    def _offsets(self, width: Width, numbers: Mapping[_Key, NDArray[np.intp]], zero_points: int) -> dict[_Key, str]:
        """By weight 256 times the number of each row's zero point, [R, 1]; those of all weights lie packed together."""
        if not numbers:
            return {}
        out, name = self._out, f"int{width.bits}_zeros"
        together = np.concatenate(list(numbers.values()))
        bits = next(bits for bits in (2, 4, 8) if zero_points <= 1 << bits)
        stored = np.frombuffer(pack_flat(together, bits), np.uint8)
        tensor = out.node("Cast", [out.constant(name, stored)], f"{name}_int32", to=TensorProto.INT32)
        if bits < 8:
            tensor = out.node("Gather", [self._byte_table(bits, 8), tensor], f"{name}_steps")
        else:
            tensor = out.node("Mul", [tensor, out.int32(256)], f"{name}_steps")
        tensor = out.node("Reshape", [tensor, out.int64(-1, 1)], f"{name}_offsets")
        sizes = [rows.size for rows in numbers.values()]
        left = stored.size * 8 // bits - sum(sizes)
        names = [*(f"{self._weights[key].name}_z" for key in numbers), *([f"{name}_unused"] if left else [])]
        if len(names) == 1:
            return dict.fromkeys(numbers, tensor)
        split = [tensor, out.int64(*sizes, *([left] if left else []))]
        return dict(zip(numbers, out.nodes("Split", split, names), strict=False))

    def _byte_table(self, bits: int, shift: int) -> str:
        """INT32 [256, 8 / bits]: the fields of a byte, shifted to the left."""
        if (bits, shift) not in self._planes:
            inputs = [self._fields(8, bits), self._out.int32(1 << shift)]
            self._planes[bits, shift] = self._out.node("Mul", inputs, f"fields_8_{bits}_shifted_{shift}")
        return self._planes[bits, shift]

    def _fields(self, index_bits: int, bits: int) -> str:
        """INT32 [2^index_bits, index_bits / bits]: the fields of ``bits`` bits of every index, the lowest first."""
        key, out = (index_bits, bits), self._out
        if key not in self._digits:
            name = f"fields_{index_bits}_{bits}"
            index = out.node("Reshape", [self._range(1 << index_bits), out.int64(-1, 1)], f"{name}_index")
            places = out.int32(*(1 << place for place in range(0, index_bits, bits)))
            self._digits[key] = out.node(
                "Mod", [out.node("Div", [index, places], f"{name}_left"), out.int32(1 << bits)], name
            )
        return self._digits[key]

    def _range(self, size: int) -> str:
        if size not in self._ranges:
            inputs = [self._out.int32(0), self._out.int32(size), self._out.int32(1)]
            self._ranges[size] = self._out.node("Range", inputs, f"range_{size}")
        return self._ranges[size]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SharedTables:
    """Names: the table, by plane its own ("" for the main one), and by weight its offsets if it has any."""

    table: str
    planes: Sequence[str]
    offsets: Mapping[_Key, str]
