"""Comparison, logic and Where."""

import torch
from torch import Tensor

from pdq_export.frontend.ops.common import same_device, simple, via_int64, with_attributes


def equal(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Equal: a == b."""
    return via_int64(torch.eq, a, b)


def greater(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Greater: a > b."""
    return via_int64(torch.gt, a, b)


def less(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Less: a < b."""
    return via_int64(torch.lt, a, b)


def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """ONNX GreaterOrEqual: a >= b."""
    return via_int64(torch.ge, a, b)


def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """ONNX LessOrEqual: a <= b."""
    return via_int64(torch.le, a, b)


def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """ONNX And."""
    a, b = same_device(a, b)
    return a & b


def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Or."""
    a, b = same_device(a, b)
    return a | b


def logical_xor(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Xor."""
    a, b = same_device(a, b)
    return a ^ b


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """ONNX Where: a where the condition holds, else b."""
    condition, a, b = same_device(condition, a, b)
    return torch.where(condition, a, b)


def is_inf(x: Tensor, *, detect_negative: int, detect_positive: int) -> Tensor:
    """ONNX IsInf: whether x is one of the infinities asked for."""
    infinite = torch.isinf(x)
    if not detect_negative:
        infinite = infinite & (x > 0)
    return infinite if detect_positive else infinite & (x < 0)


simple("Equal", (7, 11, 13, 19), equal)
simple("Greater", (9, 13), greater)
simple("Less", (9, 13), less)
simple("GreaterOrEqual", (12, 16), greater_or_equal)
simple("LessOrEqual", (12, 16), less_or_equal)
simple("And", 7, logical_and)
simple("Or", 7, logical_or)
simple("Xor", 7, logical_xor)
simple("Not", 1, torch.logical_not)
simple("Where", (9, 16), where)
simple("IsNaN", (9, 13, 20), torch.isnan)
with_attributes("IsInf", (10, 20), is_inf, "detect_negative", "detect_positive")
