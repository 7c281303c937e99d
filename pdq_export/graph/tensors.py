"""How many bytes and elements a TensorProto must have; checked before anything is allocated."""

import math

import onnx
from onnx import TensorProto

from pdq_export.errors import ModelError

LIMIT = 2**31 - 1  # bytes of a model with its weights: protobuf serializes no more

BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.FLOAT8E8M0: 8,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


def byte_size(tensor: TensorProto, where: str) -> int:
    """Number of bytes that the tensor's dims and type need.

    Raises ModelError for types without a size and for negative dims.
    """
    if tensor.data_type not in BITS:
        name = _type_name(tensor)
        raise ModelError(f"{where}: has type {name}; expected a numeric type; re-export the model")
    return (_elements(tensor, where) * BITS[tensor.data_type] + 7) // 8


def check_size(tensor: TensorProto) -> None:
    """Raise ModelError if the data stored inside the tensor do not match its dims."""
    where = f"tensor {tensor.name!r}"
    elements = _elements(tensor, where)
    if tensor.data_type == TensorProto.STRING:
        found, expected, unit = len(tensor.string_data), elements, "strings"
    elif tensor.HasField("raw_data"):
        found, expected, unit = len(tensor.raw_data), byte_size(tensor, where), "bytes"
    else:
        found, expected, unit = _stored_numbers(tensor), _numbers(tensor, elements, where), "numbers"
    if found != expected:
        raise ModelError(
            f"{where}: holds {found} {unit}; expected {expected} for dims {list(tensor.dims)} of "
            f"{_type_name(tensor)}; the file is damaged: export the model again"
        )


def _elements(tensor: TensorProto, where: str) -> int:
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"{where}: has dims {list(tensor.dims)}; expected sizes of at least 0; export again")
    return math.prod(tensor.dims)


def _numbers(tensor: TensorProto, elements: int, where: str) -> int:
    """Entries that the typed field (int32_data, ...) must have: packed below 8 bits, two for a complex."""
    byte_size(tensor, where)  # refuses unknown types
    bits = BITS[tensor.data_type]
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * elements
    return (elements * bits + 7) // 8 if bits < 8 else elements


def _stored_numbers(tensor: TensorProto) -> int:
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    return len(getattr(tensor, field))


def _type_name(tensor: TensorProto) -> str:
    names = {number: name for name, number in TensorProto.DataType.items()}
    return str(names.get(tensor.data_type, tensor.data_type))
