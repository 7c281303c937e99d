"""All that the steps of a block are told, settled before the first: which images, at what rates and weights.

A block draws from generators of its own, seeded by the seed and its position: it can be repeated alone, bit for bit.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pdq_export.calibrate.step import StepNumbers
from pdq_export.config.method import CalibrationOptions
from pdq_export.numerics.adam import BETA1, BETA2

# What a block draws, each from a stream of its own: which images go into a step, and which elements are dropped.
_BATCHES, _MASKS = 0, 1


def batch_generator(seed: int, position: int, rank: int = 0) -> torch.Generator:
    """Draws the batches of the block at ``position``, on the CPU: they index caches that lie there or in files.

    Each ``rank`` draws its part of every batch from the images that it has: all have the same to do at each step.
    """
    return torch.Generator().manual_seed(_mixed(seed, position, _BATCHES, rank))


def mask_generator(seed: int, position: int, device: torch.device, rank: int = 0) -> torch.Generator:
    """Draws the masks of the block at ``position``, on the ``device`` of what they apply to; each ``rank`` its own."""
    return torch.Generator(device).manual_seed(_mixed(seed, position, _MASKS, rank))


def _mixed(seed: int, position: int, stream: int, rank: int) -> int:
    """A seed that differs in all bits between neighbouring seeds, blocks, streams and ranks."""
    key = (position, stream, rank) if rank else (position, stream)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def draw_batches(images: int, batch_size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Indices of the images of every step, [steps, batch], without repetition within a step.

    Batches are no larger than there are ``images``.
    """
    batches = torch.empty(steps, min(batch_size, images), dtype=torch.int64)
    for batch in batches:
        batch.copy_(torch.randperm(images, generator=generator)[: len(batch)])
    return batches


def cosine_decay(step: int, steps: int) -> float:
    """1 at the first step, which is 0, and near 0 at the last (Loshchilov and Hutter, 2017)."""
    return (1.0 + math.cos(math.pi * step / steps)) / 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The numbers of every step, float32 tensors on the device of the steps.

    ``exponents``, ``rounding_rates`` and ``roots`` are [steps], ``scale_rates`` [steps, scales]. The prediction
    difference is taken every ``interval`` steps with ``prediction_weight`` [], never where that is None; the rounding
    term from step ``warmup`` on with ``rounding_weight`` [].
    """

    exponents: Tensor
    rounding_rates: Tensor
    scale_rates: Tensor
    roots: Tensor
    interval: int
    prediction_weight: Tensor | None
    warmup: float
    rounding_weight: Tensor

    @classmethod
    def of(
        cls, options: CalibrationOptions, scale_rates: Sequence[float], *, predicts: bool, device: torch.device
    ) -> "Schedule":
        """``scale_rates``: of every scale at the first step. ``predicts``: whether there is a prediction difference."""
        steps, warmup = options.iters, options.warmup * options.iters
        progress = [max(step - warmup, 0.0) / max(steps - warmup, 1) for step in range(steps)]
        exponents = [options.exponent_start + (options.exponent_end - options.exponent_start) * p for p in progress]
        # Adam divides a rate by 1 - beta1^t, and the root of the second moment by that of 1 - beta2^t.
        first = [1 - BETA1 ** (step + 1) for step in range(steps)]
        decayed = [[rate * cosine_decay(step, steps) / bias for rate in scale_rates] for step, bias in enumerate(first)]
        weight = options.prediction_interval / options.lambda_r
        return cls(
            exponents=torch.tensor(exponents, device=device),
            rounding_rates=torch.tensor([options.rounding_lr / bias for bias in first], device=device),
            scale_rates=torch.tensor(decayed, device=device),
            roots=torch.tensor([(1 - BETA2 ** (step + 1)) ** 0.5 for step in range(steps)], device=device),
            interval=options.prediction_interval,
            prediction_weight=torch.tensor(weight, device=device) if predicts else None,
            warmup=warmup,
            rounding_weight=torch.tensor(options.rounding_weight, device=device),
        )

    def __len__(self) -> int:
        return len(self.roots)

    def numbers(self, step: int) -> StepNumbers:
        """What the ``step``, counted from 0, is told."""
        rounds = step >= self.warmup
        return StepNumbers(
            prediction_weight=self.prediction_weight if step % self.interval == 0 else None,
            rounding_weight=self.rounding_weight if rounds else None,
            exponent=self.exponents[step] if rounds else None,
            rounding_rate=self.rounding_rates[step],
            scale_rates=self.scale_rates[step].unbind() if self.scale_rates.numel() else (),
            root=self.roots[step],
        )
