"""Constants, ranges, types, and operators that do nothing at inference."""

from typing import Any

import torch
from torch import Tensor

from pdq_export.frontend.constants import ELEMENT_TYPES, TORCH_DTYPES, host_constant, type_name
from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import Ints, as_ints, simple
from pdq_export.frontend.registry import converter


@converter("Constant", (9, 11, 12, 13, 19, 21, 23, 24, 25))
def _constant(node: OnnxNode) -> Call:
    value = node.attribute("value")
    if isinstance(value, Tensor):
        return Call(lambda: value, [])  # evaluated at import: the value becomes a buffer or a parameter
    for attribute, dtype in (("float", torch.float32), ("int", torch.int64)):
        for name in (f"value_{attribute}", f"value_{attribute}s"):
            if node.attribute(name) is not None:
                return Call(host_constant, [node.attribute(name), dtype])
    raise node.unsupported("the constant is text or sparse", "export the model with dense numeric constants only")


@converter("ConstantOfShape", (9, 20, 21, 23, 24, 25))
def _constant_of_shape(node: OnnxNode) -> Call:
    value = node.attribute("value")
    number, dtype = (0.0, torch.float32) if value is None else (value.reshape(-1)[0].item(), value.dtype)
    return Call(constant_of_shape, [node.parameter(0)], {"value": number, "dtype": dtype})


@converter("Cast", (9, 13, 19, 21, 23, 24, 25, 28))
def _cast(node: OnnxNode) -> Call:
    target = node.attribute("to")
    if target not in TORCH_DTYPES:
        raise node.unsupported(
            f"casts to {type_name(target)}; torch has no arithmetic for this type",
            f"cast to {ELEMENT_TYPES}",
        )
    return Call(cast, [node.tensor(0)], {"dtype": TORCH_DTYPES[target]})


@converter("CastLike", (15, 19, 21, 23, 24, 25))
def _cast_like(node: OnnxNode) -> Call:
    return Call(cast_like, node.tensors())


@converter("Dropout", 7)
def _dropout_old(node: OnnxNode) -> Call:
    return _inference_dropout(node, bool_mask=False)


@converter("Dropout", 10)
def _dropout(node: OnnxNode) -> Call:
    return _inference_dropout(node, bool_mask=True)


@converter("Dropout", (12, 13, 22))
def _dropout_inputs(node: OnnxNode) -> Call:
    training = node.constant(2)
    if node.has_input(2) and (training is None or bool(training.item())):
        raise node.unsupported("training_mode is set or computed", "export the model for inference (model.eval())")
    return _inference_dropout(node, bool_mask=True)


def _inference_dropout(node: OnnxNode, bool_mask: bool) -> Call:
    if len(node.outputs) == 1:
        return Call(identity, [node.tensor(0)])
    return Call(dropout_with_mask, [node.tensor(0)], {"bool_mask": bool_mask}, outputs=True)


@converter("Range", (11, 27))
def _range(node: OnnxNode) -> Call:
    return Call(number_range, node.tensors())


def identity(x: Tensor) -> Tensor:
    """ONNX Identity and Dropout at inference: x."""
    return x


def dropout_with_mask(x: Tensor, *, bool_mask: bool) -> tuple[Tensor, Tensor]:
    """ONNX Dropout at inference with both outputs: x, and a mask that keeps everything."""
    return x, torch.ones_like(x, dtype=torch.bool if bool_mask else x.dtype)


def constant_of_shape(shape: Ints, *, value: Any, dtype: torch.dtype) -> Tensor:
    """ONNX ConstantOfShape: ``value`` everywhere; on the CPU, like the shape."""
    return torch.full(as_ints(shape), value, dtype=dtype)


def cast(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """ONNX Cast: x in another element type; to bool it is x != 0."""
    return x.to(dtype)


def cast_like(x: Tensor, other: Tensor) -> Tensor:
    """ONNX CastLike: x in the element type of ``other``."""
    return x.to(other.dtype)


def number_range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """ONNX Range: start, start + delta, ... before limit; one dimension, in the type of start."""
    wide = torch.float32 if start.dtype in (torch.float16, torch.bfloat16) else start.dtype
    first, last, step = (value.item() for value in (start, limit, delta))
    count = max(-int((first - last) // step), 0)  # ceil((limit - start) / delta)
    steps = torch.arange(count, device=start.device, dtype=wide)
    return (steps * step + first).to(start.dtype)


simple("Identity", (1, 13, 14, 16, 19, 21, 23, 24, 25), identity)
