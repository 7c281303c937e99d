"""Learned rounding of weights (AdaRound, section 3; rectified sigmoid with zeta = 1.1, gamma = -0.1), and its end."""

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


def rounding_regularizer(h: Tensor, exponent: Tensor | float) -> Tensor:
    """Sum of 1 - |2h - 1|^exponent: zero exactly where every h is 0 or 1 (AdaRound, equation 24)."""
    return (1 - (2 * h - 1).abs().pow(exponent)).sum()


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
    for k in range(part.shape[2]):
        diagonal = inner[:, k, k, None]
        best = part[:, :, k] - own[:, :, k] / diagonal
        new = torch.round(best).clamp(low[:, :, columns][:, :, k], high[:, :, columns][:, :, k])
        own += (new - part[:, :, k])[:, :, None] * inner[:, k, None, :]
        part[:, :, k] = new
    pull += (part - before) @ moments[:, columns, :]
