"""ONNX constants as torch tensors."""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from pdq_export.errors import ModelError

TORCH_DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
}

ELEMENT_TYPES = "floating point of 16 to 64 bits, integers of 8 to 64 bits or bool"


def type_name(data_type: int) -> str:
    """The name of an ONNX element type, for messages."""
    return str(TensorProto.DataType.Name(data_type)) if data_type in TensorProto.DataType.values() else str(data_type)


def to_torch(tensor: onnx.TensorProto) -> torch.Tensor:
    """A copy of the constant, with its element type.

    Raises ModelError for a type that torch does not have.
    """
    if tensor.data_type not in TORCH_DTYPES:
        raise ModelError(
            f"constant {tensor.name!r}: element type {type_name(tensor.data_type)}; expected {ELEMENT_TYPES}"
        )
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ModelError(
            f"constant {tensor.name!r}: its data lie in another file that has not been read; load the model with "
            "onnx.load(path), its data files beside it"
        )
    array = np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
    if tensor.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def host_constant(values: Any, dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the CPU, for shape arithmetic."""
    return torch.tensor(values, dtype=dtype)
