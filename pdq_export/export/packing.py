"""How weights of 2 to 7 bits lie in bytes, so that operators of opset 13 unpack them; arithmetic alone, in numpy.

A weight [..] of b bits is read as rows [R, n] of unsigned integers u = integers - qmin: one row an output channel where
their zero points differ, else one row of everything. A table cannot be looked up by a number of b bits that straddles
bytes, so g neighbours share an index of b * g bits,

    index[r, i] = sum over k < g of u[r, i * g + k] << (b * k),

and the index is cut into planes, the lowest 8 bits first: 8 bits of an index are a byte of the main plane, and what is
above lies in planes of 4 or 2 bits, two or four indices a byte. That is b bits a weight, as planes of 4, 2 and 1 bits
of single weights would take:

    b    g   bits of the planes    weights that fill a byte of every plane
    2    4   8                     4
    3    4   8 + 4                 8
    4    2   8                     2
    5    2   8 + 2                 8
    6    2   8 + 4                 4
    7    2   8 + 4 + 2             8

Rows are filled up with zeros to whole bytes of every plane. How the graph turns planes into INT8 again is said, and
done, in `pdq_export.export.unpacking`.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int16]

# About what a node takes in the file, with the name of its output; they have none of their own.
UNPACKING_NODE_BYTES = 64
TABLE_BYTES = 12 * UNPACKING_NODE_BYTES  # of what is there once for all weights of one width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Width:
    """How weights of ``bits`` bits are packed: ``group`` of them share an index, cut into ``planes``."""

    bits: int
    group: int
    planes: tuple[int, ...]

    @property
    def granule(self) -> int:
        """Number of weights that fill a byte of every plane."""
        return self.group * 8 // min(self.planes)

    @property
    def shifts(self) -> tuple[int, ...]:
        """By plane, where its bits start in the index."""
        return tuple(itertools.accumulate(self.planes[:-1], initial=0))

    @property
    def tail(self) -> tuple[int, ...]:
        """The last axes of the main plane: indices that share a byte of the planes above it, the narrowest outermost.

        (2, 2) where two bytes of the 4-bit plane belong to one of the 2-bit plane.
        """
        shared = [8 // bits for bits in reversed(self.planes)]
        return tuple(a // b for a, b in itertools.pairwise(shared))


WIDTHS = {
    width.bits: width
    for width in (
        Width(bits=2, group=4, planes=(8,)),
        Width(bits=3, group=4, planes=(8, 4)),
        Width(bits=4, group=2, planes=(8,)),
        Width(bits=5, group=2, planes=(8, 2)),
        Width(bits=6, group=2, planes=(8, 4)),
        Width(bits=7, group=2, planes=(8, 4, 2)),
    )
}


def pack(rows: Integers, width: Width) -> list[Bytes]:
    """The planes of ``rows``, [R, n] in [0, 2^b): [R, m, *tail] the main one, [R, m, *tail[:-1]] the next, and so on.

    m is n over the granule, rounded up. Raises ValueError for integers that ``width`` does not hold.
    """
    if rows.min(initial=0) < 0 or rows.max(initial=0) >> width.bits:
        raise ValueError(f"integers span [{rows.min()}, {rows.max()}]; expected {width.bits} bits")
    count, length = rows.shape
    blocks = -(-length // width.granule)
    filled = np.zeros((count, blocks * width.granule), np.int64)
    filled[:, :length] = rows
    places = width.bits * np.arange(width.group)
    index = (filled.reshape(count, -1, width.group) << places).sum(axis=-1)
    planes = []
    for number, (bits, shift) in enumerate(zip(width.planes, width.shifts, strict=True)):
        fields = (index.reshape(count, -1, 8 // bits) >> shift) & (2**bits - 1)
        packed = (fields << bits * np.arange(8 // bits)).sum(axis=-1).astype(np.uint8)
        planes.append(packed.reshape(count, blocks, *width.tail[: len(width.tail) - number]))
    return planes


def unpack(planes: Sequence[Bytes], width: Width, length: int) -> Integers:
    """The rows [R, length] that `pack` was given. Raises ValueError for planes that cannot be theirs."""
    count, blocks = planes[0].shape[0], -(-length // width.granule)
    indices = count * blocks * width.granule // width.group
    for plane, bits in zip(planes, width.planes, strict=True):  # before anything as large as is said is made
        if plane.dtype != np.uint8 or plane.size * 8 != indices * bits:
            raise ValueError(f"{plane.size} {plane.dtype} of a plane of {bits} bits; expected {indices * bits // 8}")
    index = np.zeros(indices, np.int32)
    for plane, bits, shift in zip(planes, width.planes, width.shifts, strict=True):
        fields = plane.reshape(-1, 1) >> (bits * np.arange(8 // bits)) & (2**bits - 1)
        index |= fields.reshape(-1).astype(np.int32) << shift
    values = index[:, None] >> (width.bits * np.arange(width.group)) & (2**width.bits - 1)
    return np.asarray(values.reshape(count, -1)[:, :length], np.int16)


def to_rows(values: Integers, axis: int | None, count: int) -> Integers:
    """A weight as ``count`` rows: 1, of everything in order, or one for each place along ``axis``."""
    first = values if count == 1 or axis is None else np.moveaxis(values, axis, 0)
    return first.reshape(count, -1)


def from_rows(rows: Integers, shape: Sequence[int], axis: int | None) -> Integers:
    """The weight of ``shape`` that `to_rows` was given."""
    if len(rows) == 1 or axis is None:
        return rows.reshape(shape)
    others = [size for place, size in enumerate(shape) if place != axis]
    return np.asarray(np.moveaxis(rows.reshape(-1, *others), 0, axis), np.int16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packable:
    """What decides how a weight lies in the file: its ``shape``, the ``axis`` of its channels, its ``bits``.

    ``rows``: 1 where all channels have the same zero point, else the number of channels. ``shifted``: whether channels
    differ in theirs, so that indices need an offset. One zero point that is not the first of the table of its width
    needs an Add as well, which depends on the other weights and is not counted.
    """

    shape: tuple[int, ...]
    axis: int | None
    bits: int
    rows: int
    shifted: bool = True

    @classmethod
    def of(cls, shape: Sequence[int], axis: int | None, bits: int, zero_point: NDArray[np.integer]) -> "Packable":
        """That of a weight with these zero points, [] or [C]."""
        equal = bool((zero_point == zero_point.flat[0]).all()) if zero_point.size else True
        return cls(shape=tuple(shape), axis=axis, bits=bits, rows=1 if equal else zero_point.size, shifted=not equal)

    @property
    def length(self) -> int:
        """Number of weights in a row."""
        return math.prod(self.shape) // self.rows

    @property
    def transposed(self) -> bool:
        """Whether rows do not lie in the order of the weight."""
        return self.rows > 1 and self.axis not in (None, 0)

    def padded(self, width: Width) -> bool:
        """Whether rows do not fill the bytes of every plane."""
        return self.length % width.granule != 0


def packed_bytes(weight: Packable, bits: int) -> int:
    """Bytes of a weight that is stored with ``bits`` bits, its planes or INT8, without nodes and zero points."""
    if bits == 8:
        return math.prod(weight.shape)
    width = WIDTHS[bits]
    indices = -(-weight.length // width.granule) * width.granule // width.group
    return weight.rows * indices * sum(width.planes) // 8


def unpacking_nodes(weight: Packable, bits: int) -> int:
    """Number of nodes that make INT8 of a weight that is stored with ``bits`` bits; those of its width's tables not."""
    if bits == 8:
        return 0
    width = WIDTHS[bits]
    above = len(width.planes) - 1
    return 3 + 3 * above + weight.shifted + 2 * weight.padded(width) + weight.transposed


def offset_bytes(weight: Packable, bits: int) -> int:
    """Bytes of the numbers of zero points, one a row, of a weight that is stored with ``bits`` bits."""
    return 0 if bits == 8 or not weight.shifted else weight.rows * next(b for b in (2, 4, 8) if b >= bits) // 8


def loading_bytes(weight: Packable, bits: int) -> int:
    """Bytes of all that is computed when a weight stored with ``bits`` bits is unpacked; runtimes keep it till the end.

    The outputs of its own nodes, that is, without the tables of its width; 0 for INT8.
    """
    if bits == 8:
        return 0
    width = WIDTHS[bits]
    blocks = weight.rows * -(-weight.length // width.granule)
    indices = blocks * width.granule // width.group
    indexed = 4 * indices  # bytes of an INT32 for each index
    total = indexed  # the main plane
    for plane in width.planes[1:]:
        total += indexed * plane // 8 + 2 * indexed  # Cast, Gather and Add
    if weight.shifted:
        total += indexed * min(width.planes) // 8
    values, filled = math.prod(weight.shape), indices * width.group
    if weight.padded(width):
        total += filled + values
    return total + filled + values + (values if weight.transposed else 0)


def choose_widths(weights: Sequence[Packable]) -> list[int]:
    """For each weight the number of bits, 8 for INT8, with which all of them take the fewest bytes in the file.

    Counted are planes and, at `UNPACKING_NODE_BYTES` each, the nodes that unpack them, and once for every width that is
    used its tables. A row that does not fill its bytes may lie in fewer at more bits.
    """
    costs = np.array(
        [
            [
                packed_bytes(weight, bits)
                + UNPACKING_NODE_BYTES * unpacking_nodes(weight, bits)
                + offset_bytes(weight, bits)
                if bits >= weight.bits
                else np.inf
                for bits in (*WIDTHS, 8)
            ]
            for weight in weights
        ]
    ).reshape(len(weights), len(WIDTHS) + 1)
    best, chosen = np.inf, [8] * len(weights)
    for used in itertools.chain.from_iterable(itertools.combinations(range(len(WIDTHS)), n) for n in range(7)):
        columns = [*used, len(WIDTHS)]
        total = costs[:, columns].min(axis=1).sum() + TABLE_BYTES * len(used)
        if total < best:
            best = total
            chosen = [(*WIDTHS, 8)[columns[place]] for place in costs[:, columns].argmin(axis=1)]
    return chosen
