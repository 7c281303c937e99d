"""How integers of few bits lie in an initializer."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

UINT4_OPSET, UINT2_OPSET = 21, 25
NARROW = (2, 4)  # bits of the types below INT8


def storage_bits(bits: int, opset: int) -> int:
    """Number of bits of a weight in the file: 2, 4 or 8, the fewest that hold ``bits`` and ``opset`` knows."""
    if bits <= 2 and opset >= UINT2_OPSET:
        return 2
    return 4 if bits <= 4 and opset >= UINT4_OPSET else 8


def storage_opset(bits: int) -> int:
    """The opset from which a weight of ``bits`` bits is stored as small as it can be."""
    return UINT2_OPSET if bits <= 2 else UINT4_OPSET if bits <= 4 else 13


def pack(values: NDArray[Any], bits: int) -> bytes:
    """Pack integers into bytes, the first value in the lowest bits, the last byte filled up with zeros.

    ``values``: any shape, read in C order; each in [0, 2^bits) or, for signed ones, in two's complement.
    ``bits``: 2, 4 or 8 (ONNX, "Int4 and uint4", "2-bit integer types").
    """
    per_byte = 8 // bits
    flat = values.reshape(-1).astype(np.int16).astype(np.uint16) & (2**bits - 1)
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint16)
    padded[: flat.size] = flat
    shifts = np.arange(per_byte, dtype=np.uint16) * bits
    return bytes(np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1).astype(np.uint8).tobytes())


def packed_tensor(name: str, values: NDArray[Any], bits: int, *, signed: bool) -> TensorProto:
    """An initializer of type UINT2, UINT4 or UINT8 (or its signed sibling) that holds ``values``."""
    types = {
        (2, False): TensorProto.UINT2,
        (4, False): TensorProto.UINT4,
        (8, False): TensorProto.UINT8,
        (2, True): TensorProto.INT2,
        (4, True): TensorProto.INT4,
        (8, True): TensorProto.INT8,
    }
    return onnx.helper.make_tensor(name, types[bits, signed], values.shape, pack(values, bits), raw=True)
