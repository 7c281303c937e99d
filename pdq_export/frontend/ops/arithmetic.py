"""Arithmetic, element by element with broadcasting."""

import functools

import torch
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import root, same_device, simple, via_int64
from pdq_export.frontend.registry import converter


def add(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Add: a + b."""
    return via_int64(torch.add, a, b)


def sub(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Sub: a - b."""
    return via_int64(torch.sub, a, b)


def mul(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Mul: a * b."""
    return via_int64(torch.mul, a, b)


def div(a: Tensor, b: Tensor) -> Tensor:
    """ONNX Div: a / b, truncated towards zero for integers."""
    if a.is_floating_point():
        a, b = same_device(a, b)
        return a / b
    return via_int64(functools.partial(torch.div, rounding_mode="trunc"), a, b)


def power(a: Tensor, b: Tensor | float) -> Tensor:
    """ONNX Pow: a ** b in a's type."""
    if not isinstance(b, Tensor):
        if 0 < b < 1 and a.is_floating_point():
            return root(a, float(b))
        return torch.pow(a, b).to(a.dtype)
    a, b = same_device(a, b)
    exponent = b if b.is_floating_point() or b.is_signed() else b.to(torch.int64)
    base = a if a.is_floating_point() or a.is_signed() else a.to(torch.int64)
    if base.is_floating_point() and exponent.is_floating_point():
        return root(base, exponent).to(a.dtype)
    return torch.pow(base, exponent).to(a.dtype)


def mod(a: Tensor, b: Tensor, *, fmod: int) -> Tensor:
    """ONNX Mod: the remainder with the sign of b, or with fmod that of a."""
    return via_int64(torch.fmod if fmod else torch.remainder, a, b)


def negate(x: Tensor) -> Tensor:
    """ONNX Neg: -x."""
    return -x


def absolute(x: Tensor) -> Tensor:
    """ONNX Abs: |x|; unsigned numbers are their own."""
    return x.abs() if x.is_floating_point() or x.is_signed() else x


def sign(x: Tensor) -> Tensor:
    """ONNX Sign: -1, 0 or 1."""
    return via_int64(torch.sign, x)


def minimum(*tensors: Tensor) -> Tensor:
    """ONNX Min: the smallest, element by element; NaN where one is NaN."""
    return functools.reduce(functools.partial(via_int64, torch.minimum), tensors)


def maximum(*tensors: Tensor) -> Tensor:
    """ONNX Max: the largest, element by element; NaN where one is NaN."""
    return functools.reduce(functools.partial(via_int64, torch.maximum), tensors)


def total(*tensors: Tensor) -> Tensor:
    """ONNX Sum: element by element."""
    return functools.reduce(add, tensors)


def mean(*tensors: Tensor) -> Tensor:
    """ONNX Mean: element by element."""
    return total(*tensors) / len(tensors)


@converter("Pow", (7, 12, 13, 15))
def _pow(node: OnnxNode) -> Call:
    exponent = node.parameter(1)
    baked = isinstance(exponent, (int, float))  # a scalar exponent has faster kernels
    return Call(power, [node.tensor(0), exponent if baked else node.tensor(1)])


@converter("Mod", (10, 13, 28))
def _mod(node: OnnxNode) -> Call:
    return Call(mod, node.tensors(), {"fmod": node.attribute("fmod")})


simple("Add", (7, 13, 14), add)
simple("Sub", (7, 13, 14), sub)
simple("Mul", (7, 13, 14), mul)
simple("Div", (7, 13, 14), div)
simple("Min", (8, 12, 13), minimum)
simple("Max", (8, 12, 13), maximum)
simple("Sum", (8, 13), total)
simple("Mean", (8, 13), mean)
simple("Neg", (6, 13), negate)
simple("Abs", (6, 13), absolute)
simple("Sign", (9, 13), sign)
simple("Reciprocal", (6, 13), torch.reciprocal)
simple("Exp", (6, 13), torch.exp)
simple("Log", (6, 13), torch.log)
simple("Sqrt", (6, 13), root)
simple("Erf", (9, 13), torch.erf)
simple("Sin", (7, 22), torch.sin)
simple("Cos", (7, 22), torch.cos)
simple("Floor", (6, 13), torch.floor)
simple("Ceil", (6, 13), torch.ceil)
simple("Round", (11, 22), torch.round)  # half to even, as in ONNX
