"""Arrays as plain types: element type, shape and the bytes, compressed, in base 64."""

import base64
import binascii
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_AXES = 8
_LARGEST = 1 << 31  # bytes of one array, as of any in an ONNX file
_LEVEL = 1  # of zlib: integers of few bits become small at any level


class Stored:
    """Marks a field as an array of this element type, for `spec.plain`: ``Annotated[NDArray[np.int16], Stored(...)]``.

    What is read has the declared element type and the size that its shape says, or it is refused before it is
    allocated.
    """

    def __init__(self, dtype: type[np.generic]) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # planning and layouts use this module, too, and need no validation

        write = core_schema.plain_serializer_function_ser_schema(self.write)
        return core_schema.no_info_plain_validator_function(self.read, serialization=write)

    def write(self, array: NDArray[Any]) -> dict[str, Any]:
        """The plain form. Raises TypeError for an array of another element type."""
        if array.dtype != self.dtype:
            raise TypeError(f"an array of {array.dtype}; expected {self.dtype}")
        data = np.ascontiguousarray(array, self.dtype).tobytes()
        text = base64.b64encode(zlib.compress(data, _LEVEL)).decode()
        return {"dtype": self.dtype.name, "shape": list(array.shape), "data": text}

    def read(self, value: Any) -> NDArray[Any]:
        """The array of a plain form. Raises ValueError for anything that is none."""
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data"}:
            raise ValueError("expected an array: dtype, shape and data")
        dtype, shape, text = value["dtype"], value["shape"], value["data"]
        if dtype != self.dtype.name:
            raise ValueError(f"expected an array of {self.dtype.name}")
        if not isinstance(shape, list) or len(shape) > _MOST_AXES or any(type(d) is not int or d < 0 for d in shape):
            raise ValueError(f"expected a shape of at most {_MOST_AXES} sizes")
        size = math.prod(shape) * self.dtype.itemsize
        if size > _LARGEST:
            raise ValueError(f"an array of {size:,} bytes; expected at most {_LARGEST:,}")
        return np.frombuffer(_inflate(text, size), self.dtype).reshape(shape).astype(self.dtype.newbyteorder("="))


class Listed:
    """Marks a field as float32 [N] that is written as numbers, in as few digits as tell them; null is not finite."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        number = core_schema.nullable_schema(core_schema.float_schema(strict=True))
        return core_schema.no_info_after_validator_function(
            self.read,
            core_schema.list_schema(number),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write),
        )

    def write(self, array: NDArray[np.float32]) -> list[float | None]:
        """The numbers."""
        return [float(str(x)) if np.isfinite(x) else None for x in array.astype(np.float32)]

    def read(self, numbers: list[float | None]) -> NDArray[np.float32]:
        """The array; NaN where a number was not finite."""
        return np.array([np.nan if x is None else x for x in numbers], np.float32)


def _inflate(text: Any, size: int) -> bytes:
    """Exactly ``size`` bytes, and no more than these are ever unpacked."""
    if not isinstance(text, str):
        raise ValueError("expected an array's data as text")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(text, validate=True), size + 1)
    except (zlib.error, binascii.Error, ValueError) as error:
        raise ValueError(f"an array's data cannot be unpacked ({error})") from error
    if len(data) != size or not unpacker.eof:
        raise ValueError(f"an array's data are not the {size:,} bytes that its shape takes")
    return data
