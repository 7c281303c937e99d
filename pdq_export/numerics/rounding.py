"""Learned rounding of weights (AdaRound, section 3; rectified sigmoid with zeta = 1.1, gamma = -0.1)."""

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """h(alpha) = clip(sigmoid(alpha) * (zeta - gamma) + gamma, 0, 1), elementwise."""
    return torch.clamp(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def initial_alpha(fraction: Tensor) -> Tensor:
    """The alpha with h(alpha) = ``fraction``, for fractions in [0, 1): the soft weight starts at the FP32 weight."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def rounding_regularizer(h: Tensor, exponent: float) -> Tensor:
    """Sum of 1 - |2h - 1|^exponent: zero exactly where every h is 0 or 1 (AdaRound, equation 24)."""
    return (1 - (2 * h - 1).abs().pow(exponent)).sum()
