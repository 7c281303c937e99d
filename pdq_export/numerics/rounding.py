"""Learned rounding of weights (AdaRound, section 3; rectified sigmoid with zeta = 1.1, gamma = -0.1), and its end."""

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
# Of `round_compensated`: columns whose effect on all others is applied together, passes over all columns, and the
# part of the mean squared input that is added to each (directions that the images do not show).
_COLUMNS = 128
_SWEEPS = 3
_DAMPING = 1e-3


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """h(alpha) = clip(sigmoid(alpha) * (zeta - gamma) + gamma, 0, 1), elementwise."""
    return torch.clamp(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def initial_alpha(fraction: Tensor) -> Tensor:
    """The alpha with h(alpha) = ``fraction``, for fractions in [0, 1): the soft weight starts at the FP32 weight."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def rounding_regularizer(h: Tensor, exponent: float) -> Tensor:
    """Sum of 1 - |2h - 1|^exponent: zero exactly where every h is 0 or 1 (AdaRound, equation 24)."""
    return (1 - (2 * h - 1).abs().pow(exponent)).sum()


def round_compensated(weight: Tensor, low: Tensor, high: Tensor, moments: Tensor) -> Tensor:
    """Integers q in [``low``, ``high``] that change a layer's outputs little: min (q - weight)^T M (q - weight).

    ``weight`` [G, O, K] in units of its scale, the same for the integer bounds ``low`` and ``high``; ``moments``
    [G, K, K]: second moments M of the layer's inputs, all float64. Coordinate descent from round-to-nearest: each
    weight takes the integer that makes up best for the errors of all others (the quadratic problem of AdaRound,
    equation 11, and GPTQ, section 3; the descent is CDQuant's). Returns q [G, O, K].
    """
    mean_square = torch.diagonal(moments, dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    m = moments + torch.eye(moments.shape[1], dtype=moments.dtype, device=moments.device) * (
        _DAMPING * mean_square[:, None, None]
    )
    q = torch.round(weight).clamp(low, high)
    for _ in range(_SWEEPS):
        before = q.clone()
        pull = (q - weight) @ m
        for start in range(0, q.shape[2], _COLUMNS):
            _descend(q, low, high, m, pull, slice(start, start + _COLUMNS))
        if torch.equal(q, before):
            break
    return q


def _descend(q: Tensor, low: Tensor, high: Tensor, m: Tensor, pull: Tensor, columns: slice) -> None:
    """One pass over some columns; ``pull`` = (q - weight) M [G, O, K] is kept up to date."""
    inner = m[:, columns, columns]
    own, part = pull[:, :, columns].clone(), q[:, :, columns]
    before = part.clone()
    for k in range(part.shape[2]):
        diagonal = inner[:, k, k, None]
        best = part[:, :, k] - own[:, :, k] / diagonal
        new = torch.round(best).clamp(low[:, :, columns][:, :, k], high[:, :, columns][:, :, k])
        own += (new - part[:, :, k])[:, :, None] * inner[:, k, None, :]
        part[:, :, k] = new
    pull += (part - before) @ m[:, columns, :]
