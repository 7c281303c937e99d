"""Affine quantization exactly as ONNX defines it: q = clip(round_half_even(x / scale) + zero_point, qmin, qmax)."""

from typing import Any

import torch
from torch import Tensor


def quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Integers of ``x``, kept in floating point.

    ``scale`` and ``zero_point`` broadcast against ``x``. The division is a division and the rounding comes before the
    addition, as in ONNX QuantizeLinear.
    """
    return (torch.round(x / scale) + zero_point).clamp_(qmin, qmax)


def dequantize_affine(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """x_hat = (q - zero_point) * scale, as in ONNX DequantizeLinear."""
    return (q - zero_point) * scale


def per_channel(values: Tensor, axis: int | None, rank: int) -> Tensor:
    """Shape a [C] vector so that it broadcasts along ``axis`` of a tensor of ``rank`` axes; scalars stay scalars."""
    if values.ndim == 0 or axis is None:
        return values
    return values.view([-1 if position == axis else 1 for position in range(rank)])


class _FakeQuantize(torch.autograd.Function):
    """Straight-through rounding with the gradient to the scale.

    Written in floating-point arithmetic throughout: on a CPU a `where` or a boolean product costs 5 to 40 times a
    float one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, keep: Tensor | None) -> Tensor:
        ratio = x / scale
        rounded = ratio.clamp(low, high).round_()
        ctx.save_for_backward(ratio, rounded, keep)
        ctx.range = low, high
        output = rounded * scale
        return output if keep is None else output.lerp_(x, keep)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ratio, rounded, keep = ctx.saved_tensors
        (gradient,) = gradients
        through = gradient if keep is None else torch.addcmul(gradient, gradient, keep, value=-1)
        inside = torch.ops.aten.hardtanh_backward(through, ratio, *ctx.range)
        scale_gradient = None
        if ctx.needs_input_grad[1]:
            # d x_hat / d scale: rounded - ratio inside the range, rounded outside of it.
            terms = (through, rounded), (inside, ratio)
            plus, minus = (torch.dot(a.flatten(), b.flatten()) for a, b in terms)
            scale_gradient = plus - minus
        x_gradient = inside if keep is None else torch.addcmul(inside, gradient, keep)
        return x_gradient, scale_gradient, None, None, None


def fake_quantize_affine(x: Tensor, scale: Tensor, low: int, high: int, keep: Tensor | None = None) -> Tensor:
    """clip(round_half_even(x / scale), low, high) * scale, with straight-through gradients to ``x`` and ``scale``.

    Per tensor, ``scale`` []; ``low`` = qmin - zero_point and ``high`` = qmax - zero_point, which is the ONNX formula
    because zero_point is an integer. ``keep``, of the shape of ``x``, is 1.0 where an element stays in floating point
    (QDrop, section 3) and 0.0 elsewhere.
    """
    result: Tensor = _FakeQuantize.apply(x, scale, low, high, keep)  # type: ignore[no-untyped-call]
    return result


def bernoulli_like(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """A float mask of the shape of ``x``: 1.0 with ``probability`` (to the nearest 1/256), else 0.0.

    Eight elements from each 64-bit draw, which is ten times as fast as `Tensor.bernoulli_` on a CPU.
    """
    count = x.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=x.device)
    draws = words.random_(-(2**63), None, generator=generator).view(torch.uint8)[:count].view(x.shape)
    least = 256 - round(256 * probability)
    # Compared into floats at once: a bool in between costs as much again.
    return torch.ge(draws, least, out=torch.empty_like(x)) if least < 256 else torch.zeros_like(x)
