"""Warnings about a calibration that went wrong without failing, with what to do about it."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_NOISE = 1e-10  # share of an output's power that rounding in float32 may add
WATCHED = 20  # the last steps of a block, which its warning is about


def warn_of_divergence(block: str, errors: Sequence[Tensor], powers: Sequence[Tensor]) -> None:
    """Log a warning where a block's reconstruction error is above the mean square of what it is to reconstruct.

    ``errors`` and ``powers``: scalars, one a step; the last twenty count.
    """
    error, power = (float(torch.stack(list(part[-WATCHED:])).mean()) for part in (errors, powers))
    if error > power:
        logger.warning(
            "block %s: its loss diverged: the error of its output, %.3g, is above the output's own mean square, %.3g; "
            "lower rounding_lr and scale_lr (--set rounding_lr=...), or give its layers more bits",
            block,
            error,
            power,
        )


def warn_of_collapse(name: str, full: Tensor, quantized: Tensor) -> None:
    """Log a warning where output ``name`` [N, ...] says no more about FP32's than FP32's mean over the images would."""
    if len(full) < 2 or not full.is_floating_point():
        return
    signal = (full - full.mean(0)).square().sum()
    if signal <= _NOISE * full.square().sum():
        return  # it is the same for all images, but for rounding
    error = float((quantized - full).square().sum() / signal)
    if not error < 1.0:
        logger.warning(
            "output %s: the network has collapsed: its error is %.2g times the spread of FP32's outputs; use more "
            "bits, images or steps (--samples, --iters), or --method pd-quant where that was another",
            name,
            error,
        )
