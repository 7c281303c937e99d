"""Warnings about a calibration that went wrong without failing, with what to do about it."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pdq_export.advice import bits_or_float, can_have_more_bits
from pdq_export.spec import Block, Point

logger = logging.getLogger(__name__)

_NOISE = 1e-10  # share of an output's power that rounding in float32 may add
WATCHED = 20  # the last steps of a block, which its warning is about


def warn_of_divergence(
    block: str,
    errors: Sequence[Tensor],
    powers: Sequence[Tensor],
    points: Iterable[Point] = (),
    warn: Callable[[str], None] = logger.warning,
    rates: Sequence[str] = (),
) -> None:
    """Warn where a block's reconstruction error is above the mean square of what it is to reconstruct.

    ``errors`` and ``powers``: scalars, one a step; the last twenty count. ``points``: what the block quantizes.
    ``rates``: the options that say how fast it learns.
    """
    error, power = (float(torch.stack(list(part[-WATCHED:])).mean()) for part in (errors, powers))
    if error > power:
        lower = f"lower {' and '.join(rates)} (--set {rates[0]}=...), or " if rates else ""
        warn(
            f"block {block}: its loss diverged: the error of its output, {error:.3g}, is above the output's own mean "
            f"square, {power:.3g}; {lower}"
            f"{bits_or_float(can_have_more_bits(points))}"
        )


def warn_of_collapse(name: str, full: Tensor, quantized: Tensor, advise: Callable[[], str]) -> None:
    """Log a warning where output ``name`` [N, ...] says no more about FP32's than FP32's median over the images would.

    On half of the images: a sum over all of them may be one image's. ``advise``: says what to do about it; only then
    called.
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
            "output %s: the network has collapsed: its error is %.2g times the spread of FP32's outputs; %s",
            name,
            error,
            advise(),
        )


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 [] in float64, which holds the squares of all float32."""
    return (x.double() - y.double()).square().sum()


def steepest_rise(errors: Mapping[str, float], blocks: Iterable[Block]) -> str:
    """In words, the block in which the relative error rises most. ``errors``: by tensor; what is missing has none."""
    rises = []
    for block in blocks:
        before, after = (
            max((errors[name] for name in names if name in errors), default=0.0)
            for names in (block.inputs, block.outputs)
        )
        rises.append((after - before, block.name, before, after))
    _, name, before, after = max(rises)
    return f"the error of what layers hand on rises most in block {name}, from {before:.0%} to {after:.0%}"
