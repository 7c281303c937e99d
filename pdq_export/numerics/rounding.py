"""Learned rounding of weights (AdaRound, section 3; rectified sigmoid with zeta = 1.1, gamma = -0.1), and its end."""

from typing import Any

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
# Of `round_compensated`: columns whose effect on all others is applied together, and passes over all columns.
_COLUMNS = 128
_SWEEPS = 3


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """h(alpha) = clip(sigmoid(alpha) * (zeta - gamma) + gamma, 0, 1), elementwise."""
    return torch.clamp(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def initial_alpha(fraction: Tensor) -> Tensor:
    """The alpha with h(alpha) = ``fraction``, for fractions in [0, 1).

    With it the soft weight starts at the FP32 weight.
    """
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


class _SoftWeight(torch.autograd.Function):
    """The soft weight and h of one alpha, computed once; the gradients of both are those that autograd would form."""

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, floor: Tensor, low: Tensor, high: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        sigmoid = torch.sigmoid(alpha)
        stretched = sigmoid * (ZETA - GAMMA) + GAMMA
        h = torch.clamp(stretched, 0.0, 1.0)
        lifted = floor + h
        relaxed = torch.clamp(lifted, low, high)
        ctx.save_for_backward(sigmoid, stretched, h, lifted, relaxed, scale)
        ctx.set_materialize_grads(False)
        return relaxed * scale, h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sigmoid, stretched, h, lifted, relaxed, scale = ctx.saved_tensors
        of_weight, of_h = gradients
        slope = (stretched == h) * (ZETA - GAMMA)  # 0 where h is clipped
        through = None if of_weight is None else (of_weight * scale).mul_(lifted == relaxed)
        parts = [torch.ops.aten.sigmoid_backward(part * slope, sigmoid) for part in (through, of_h) if part is not None]
        return (parts[0] if len(parts) == 1 else parts[0] + parts[1]) if parts else None, None, None, None, None


def soft_weight(alpha: Tensor, floor: Tensor, low: Tensor, high: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """clip(floor + h, low, high) * scale and h = h(alpha), both of the shape of ``alpha`` and ``floor``.

    ``low``, ``high`` and ``scale`` broadcast against it and get no gradient.
    """
    weight, h = _SoftWeight.apply(alpha, floor, low, high, scale)  # type: ignore[no-untyped-call]
    return weight, h


class _Regularizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, exponent: Tensor) -> Tensor:
        centered = 2 * h - 1
        size = centered.abs()
        ctx.save_for_backward(centered, size, exponent)
        return (1 - size.pow(exponent)).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        centered, size, exponent = ctx.saved_tensors
        slope = size.pow(exponent - 1).mul_(exponent).mul_(-gradients[0])
        return slope.mul_(centered.sgn()).mul_(2), None


def rounding_regularizer(h: Tensor, exponent: Tensor) -> Tensor:
    """Sum of 1 - |2h - 1|^exponent: zero exactly where every h is 0 or 1 (AdaRound, equation 24).

    ``exponent`` [], above 0; it gets no gradient.
    """
    result: Tensor = _Regularizer.apply(h, exponent)  # type: ignore[no-untyped-call]
    return result


def round_compensated(weight: Tensor, low: Tensor, high: Tensor, moments: Tensor) -> Tensor:
    """Integers q in [``low``, ``high``] that change a layer's outputs little: min (q - weight)^T M (q - weight).

    ``weight`` [G, O, K] in units of its scale, the same for the integer bounds ``low`` and ``high``; ``moments``
    [G, K, K]: second moments M of the layer's inputs, positive definite; all float64. Coordinate descent from
    round-to-nearest: each weight takes the integer that makes up best for the errors of all others (the quadratic
    problem of AdaRound, section 3, and of GPTQ). Returns q [G, O, K].
    """
    q = torch.round(weight).clamp(low, high)
    for _ in range(_SWEEPS):
        before = q.clone()
        pull = (q - weight) @ moments
        for start in range(0, q.shape[2], _COLUMNS):
            _descend(q, low, high, moments, pull, slice(start, start + _COLUMNS))
        if torch.equal(q, before):
            break
    return q


def _descend(q: Tensor, low: Tensor, high: Tensor, moments: Tensor, pull: Tensor, columns: slice) -> None:
    """One pass over some columns; ``pull`` = (q - weight) M [G, O, K] is kept up to date."""
    inner = moments[:, columns, columns]
    own, part = pull[:, :, columns].clone(), q[:, :, columns]
    before = part.clone()
    low, high = low[:, :, columns], high[:, :, columns]
    diagonal = torch.diagonal(inner, dim1=1, dim2=2)[:, None]
    for k in range(part.shape[2]):
        best = torch.addcdiv(before[:, :, k], own[:, :, k], diagonal[:, :, k], value=-1).round_()
        new = torch.clamp(best, low[:, :, k], high[:, :, k], out=part[:, :, k])
        # Only columns that are still to come look at it.
        own[:, :, k + 1 :].addcmul_((new - before[:, :, k])[:, :, None], inner[:, k, None, k + 1 :])
    pull += (part - before) @ moments[:, columns, :]
