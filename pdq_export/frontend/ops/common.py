"""What the operators share: run-time parameters, devices, spatial windows."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdq_export.errors import UnsupportedOperatorError
from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.registry import converter

Ints = Sequence[int] | int | Tensor
Scalar = float | int | bool | Tensor

# Integer types without arithmetic kernels in torch; int64 holds their values (of uint64: those below 2^63, and sums,
# differences and products modulo 2^64 for all).
_UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})


def as_ints(value: Ints) -> list[int]:
    """A parameter as a list, whether it was baked at import (list or number) or is computed (tensor)."""
    found = value.tolist() if isinstance(value, Tensor) else value
    return [int(found)] if isinstance(found, (int, float)) else [int(item) for item in found]


def as_number(value: Any) -> Any:
    """A scalar parameter as a Python number: baked, or a tensor of one element."""
    if isinstance(value, Tensor):
        return value.item()
    return value[0] if isinstance(value, (list, tuple)) else value


def same_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device.

    Shapes are computed on the CPU. If some tensor lies elsewhere, all follow it.
    """
    target = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    if target is None:
        return tensors
    return tuple(tensor if tensor.device == target else tensor.to(target) for tensor in tensors)


def via_int64(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)`` on one device, by way of int64 for unsigned types that torch has no arithmetic for."""
    tensors = same_device(*tensors)
    dtype = tensors[0].dtype
    if dtype not in _UNSIGNED:
        return function(*tensors)
    result = function(*(tensor.to(torch.int64) for tensor in tensors))
    return result.to(dtype) if result.dtype == torch.int64 else result


def root(x: Tensor, power: float | Tensor = 0.5) -> Tensor:
    """X ** power, with gradient 0 where x is 0 and the slope infinite.

    Infinity times 0 would end all learning, and zeros are common behind a Relu. A norm has 0 among its subgradients
    there.
    """
    steep = (x == 0) & (power < torch.ones_like(x)) & (power > torch.zeros_like(x))
    safe = torch.where(steep, torch.ones_like(x), x)
    slopes = safe.sqrt() if isinstance(power, float) and power == 0.5 else torch.pow(safe, power)
    return torch.where(steep, torch.zeros_like(x), slopes)


def simple(op_type: str, since_version: int | tuple[int, ...], function: Callable[..., Any]) -> None:
    """Register an operator that is ``function(*inputs)``, without attributes."""

    @converter(op_type, since_version)
    def convert(node: OnnxNode) -> Call:
        return Call(function, node.tensors())


def with_attributes(
    op_type: str, since_version: int | tuple[int, ...], function: Callable[..., Any], *names: str
) -> None:
    """Register an operator that is ``function(*inputs, name=attribute, ...)``, the attributes having defaults."""

    @converter(op_type, since_version)
    def convert(node: OnnxNode) -> Call:
        return Call(function, node.tensors(), {name: node.attribute(name) for name in names})


def positive_axis(axis: int, rank: int) -> int:
    """``axis`` counted from the front. Raises IndexError if the tensor has no such axis."""
    if not -rank <= axis < max(rank, 1):
        raise IndexError(f"axis {axis} of a tensor with {rank} dimensions")
    return axis % rank if rank else 0


def per_axis(value: Sequence[int] | None, rank: int, default: int) -> list[int]:
    """A spatial attribute, or its default for every spatial axis."""
    return [default] * rank if value is None else list(value)


def window_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis of a sliding window.

    SAME_UPPER and SAME_LOWER give ceil(size / stride) windows and put the odd element at the end or the beginning;
    VALID gives none; NOTSET takes ``pads`` = [begins..., ends...].
    """
    rank = len(sizes)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            count = math.ceil(size / stride)
            total = max((count - 1) * stride + (window - 1) * dilation + 1 - size, 0)
            begins.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
            ends.append(total - begins[-1])
        return begins, ends
    if auto_pad == "VALID" or pads is None:
        return [0] * rank, [0] * rank
    return list(pads[:rank]), list(pads[rank:])


def torch_pads(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Padding in the order of torch.nn.functional.pad: last axis first, begin and end of each."""
    return [pad for pair in zip(reversed(begins), reversed(ends), strict=True) for pad in pair]


def spatial_rank(x: Tensor, op_type: str) -> int:
    """The number of spatial axes of N x C x D1 x ... Dn; torch knows one to three."""
    rank = x.dim() - 2
    if not 1 <= rank <= 3:
        raise UnsupportedOperatorError(
            f"{op_type}: input of shape {tuple(x.shape)}; expected 3 to 5 dimensions (N, C and one to three spatial)"
        )
    return rank
