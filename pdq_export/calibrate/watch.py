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
    """Log a warning where output ``name`` [N, ...] says no more about FP32's than FP32's median over the images would.

    On half of the images: a sum over all of them may be one image's.
    """
    if len(full) < 2 or not full.is_floating_point():
        return
    center = full.median(0).values
    spread = torch.stack([_distance(x, center) for x in full])
    power = torch.stack([_distance(x, torch.zeros_like(x)) for x in full])
    noise = torch.stack([_distance(x, y) for x, y in zip(full, quantized, strict=True)])
    if spread.sum() <= _NOISE * power.sum():
        return  # it is the same for all images, but for rounding
    usual = spread.median() > _NOISE * power.median()  # or half of the images have the same output
    error = float(noise.median() / spread.median()) if usual else float(noise.sum() / spread.sum())
    if not error < 1.0:
        logger.warning(
            "output %s: the network has collapsed: its error is %.2g times the spread of FP32's outputs; use more "
            "bits, images or steps (--samples, --iters), or --method pd-quant where that was another",
            name,
            error,
        )


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 [] in float64, which holds the squares of all float32."""
    return (x.double() - y.double()).square().sum()
