"""The terms of PD-Quant's objective."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """|output - target|^2, summed over channels (axis 1) and averaged over the rest (BRECQ, equation 10)."""
    squares = (output - target).square()
    return squares.sum(1).mean() if squares.ndim > 1 else squares.mean()


def prediction_difference(outputs: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """How far predictions are from the FP32 network's, summed over outputs (PD-Quant, equation 5).

    An output with a class axis, [N, K, ...] with K > 1: KL(softmax(target / T) || softmax(output / T)), summed over
    classes and averaged over the rest. Any other: squared error over the target's mean square.
    """
    losses = []
    for output, target in zip(outputs, targets, strict=True):
        if output.ndim >= 2 and output.shape[1] > 1:
            logs = F.log_softmax(output / temperature, dim=1)
            wanted = F.log_softmax(target / temperature, dim=1)
            losses.append((wanted.exp() * (wanted - logs)).sum(1).mean())
        else:
            losses.append(F.mse_loss(output, target) / target.square().mean().clamp(min=1e-12))
    return torch.stack(losses).sum()
