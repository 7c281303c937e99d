"""What the steps of a block are drawn and told beforehand: random generators, batches, and how rates fall."""

import math

import numpy as np
import torch
from torch import Tensor

# What a block draws, each from a stream of its own: which images go into a step, and which elements are dropped.
_BATCHES, _MASKS = 0, 1


def batch_generator(seed: int, position: int) -> torch.Generator:
    """Draws the batches of the block at ``position``, on the CPU: they index caches that lie there or in files."""
    return torch.Generator().manual_seed(_mixed(seed, position, _BATCHES))


def mask_generator(seed: int, position: int, device: torch.device) -> torch.Generator:
    """Draws the masks of the block at ``position``, on the ``device`` of what they apply to."""
    return torch.Generator(device).manual_seed(_mixed(seed, position, _MASKS))


def _mixed(seed: int, position: int, stream: int) -> int:
    """A seed that differs in all bits between neighbouring seeds, blocks and streams."""
    return int(np.random.SeedSequence(seed, spawn_key=(position, stream)).generate_state(1, np.uint64)[0])


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
