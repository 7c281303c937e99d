"""Warnings about a calibration that went wrong without failing, with what to do about it."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_FEWEST_STEPS = 40  # below, the losses of single batches say little
_SHARE = 20
_RISE = 2.0


def warn_of_divergence(block: str, losses: Sequence[Tensor]) -> None:
    """Log a warning where the last twentieth of a block's ``losses`` (scalars, one a step) is twice the first."""
    if len(losses) < _FEWEST_STEPS:
        return
    window = max(len(losses) // _SHARE, 2)
    first, last = (float(torch.stack(list(part)).mean()) for part in (losses[:window], losses[-window:]))
    if last > _RISE * first:
        logger.warning(
            "block %s: its loss rose from %.3g to %.3g while it learned; lower rounding_lr and scale_lr "
            "(--set rounding_lr=...), or give its layers more bits",
            block,
            first,
            last,
        )


def warn_of_collapse(name: str, full: Tensor, quantized: Tensor) -> None:
    """Log a warning where output ``name`` [N, ...] says no more about FP32's than FP32's mean over the images would."""
    if len(full) < 2 or not full.is_floating_point():
        return
    signal = (full - full.mean(0)).square().sum()
    error = float((quantized - full).square().sum() / signal.clamp(min=1e-12))
    if signal > 0 and not error < 1.0:
        logger.warning(
            "output %s: the network has collapsed: its error is %.2g times the spread of FP32's outputs; use more "
            "bits, --samples or --iters (--preset paper)",
            name,
            error,
        )
