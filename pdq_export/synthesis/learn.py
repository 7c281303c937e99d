"""Images learned from the statistics of BatchNormalization, as GENIE-D learns them (CVPR 2023, section 3.1).

A generator and one latent vector an image are learned together: what all images share is in the generator, what tells
them apart in the vectors. GENIE starts a new generator for each batch of 128 and takes 4,000 steps; here all images
share one, whose hundred steps cost about as much as calibration on a small network does.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pdq_export.calibrate.precision import settled_torch
from pdq_export.synthesis.generator import LATENT, Generator
from pdq_export.synthesis.statistics import Distance
from pdq_export.synthesis.swing import swing

logger = logging.getLogger(__name__)

METHOD = "GENIE-D"
_LATENT_LR, _GENERATOR_LR = 0.1, 0.01
_ROUNDS, _FEWEST_STEPS = 16, 100
# Images a step: fewer of large ones, which have as many positions and take as much memory.
_PIXELS, _FEWEST, _MOST = 2**18, 16, 64
# Of pixels between 0 and 1 in photographs.
_MIDDLE, _SPREAD = 0.45, 0.25
# What models commonly take, where nobody says what this one does: 0..1, -1..1, ImageNet's mean and std, 0..255.
_USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (-2.1, 2.5), (0.0, 255.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The lowest and highest values of each channel that images can have, both [C], where that is known."""

    low: Tensor
    high: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """``images`` [N, C, H, W] as the network takes them, and how they came to be; ``distance`` as `Distance` has it."""

    images: Tensor
    steps: int
    layers: int
    distance: float

    def to_dict(self) -> dict[str, Any]:
        """How they came to be, in plain types."""
        return {
            "method": METHOD,
            "images": len(self.images),
            "steps": self.steps,
            "layers": self.layers,
            "loss": float(f"{self.distance:.6g}"),
        }


def batch_images(count: int, size: tuple[int, int]) -> int:
    """Images a step, of ``count`` with height and width ``size``."""
    return min(count, max(_FEWEST, min(_MOST, _PIXELS // math.prod(size))))


@settled_torch()
def learn_images(
    distance: Distance,
    count: int,
    shape: tuple[int, int, int],
    *,
    known: Range | None,
    batch: int,
    seed: int,
    device: torch.device,
    told: Callable[[int, int], None] = lambda *_: None,
) -> Learned:
    """Learn ``count`` images of ``shape`` (C, H, W) until layers give what they gave in training.

    ``known``: the range that values stay in; without it they may be anything, from the usual range on that fits best.
    ``batch``: images a step. The same arguments give the same images on a CPU, byte for byte. ``told``: of the steps.
    """
    random = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    generator = Generator(channels, (height, width), random).to(device)
    latent = nn.Parameter(torch.randn(count, LATENT, generator=random).to(device))
    steps = max(_FEWEST_STEPS, _ROUNDS * math.ceil(count / batch))
    with torch.no_grad():
        first = generator(latent[:batch])
        pixels = _Pixels.fitting(known, distance, first)
    moving = distance.through(lambda module: swing(module, random))
    adam = torch.optim.Adam(
        [
            {"params": [latent], "lr": _LATENT_LR},
            {"params": [*generator.parameters(), *pixels.parameters()], "lr": _GENERATOR_LR},
        ]
    )
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step, chosen in zip(range(steps), _batches(count, batch, random), strict=False):
        adam.zero_grad()
        moving(pixels(generator(latent[chosen.to(device)]))).backward()
        adam.step()
        falling.step()
        told(step + 1, steps)
    with torch.no_grad():
        images = torch.cat([pixels(generator(latent[part])) for part in _parts(count, batch)])
    return Learned(images=images.cpu(), steps=steps, layers=distance.layers, distance=measure(distance, images, batch))


@torch.no_grad()
def measure(distance: Distance, images: Tensor, batch: int) -> float:
    """The distance of images, averaged over batches as they are learned in."""
    parts = [images[part] for part in _parts(len(images), batch)]
    return sum(float(distance(part)) * len(part) for part in parts) / len(images)


class _Pixels(nn.Module):
    """From a generator's channels, of mean 0 and variance 1, to values that a model takes; both ends are learned."""

    def __init__(self, low: Tensor, high: Tensor, *, bounded: bool) -> None:
        super().__init__()
        self._low, self._width = low.view(-1, 1, 1), (high - low).view(-1, 1, 1)
        self._bounded = bounded
        self.shift = nn.Parameter(torch.full_like(self._low, _MIDDLE))
        self.log_spread = nn.Parameter(torch.full_like(self._low, math.log(_SPREAD)))

    @classmethod
    def fitting(cls, known: Range | None, distance: Distance, x: Tensor) -> "_Pixels":
        """For a range that is known, or else the usual one in which ``x`` of a new generator is the nearest."""
        if known is not None:
            return cls(known.low.to(x.device), known.high.to(x.device), bounded=True)
        ends = x.new_tensor(_USUAL_RANGES)[:, :, None].expand(-1, -1, x.shape[1])
        tried = [cls(low.clone(), high.clone(), bounded=False) for low, high in ends]
        return min(tried, key=lambda pixels: float(distance(pixels(x))))

    def forward(self, x: Tensor) -> Tensor:
        share = x * self.log_spread.exp() + self.shift
        if self._bounded:
            share = share.clamp(0.0, 1.0)
        return self._low + share * self._width


def _batches(count: int, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    """Indices of ``batch`` images each, all of them in another order in each round, without end."""
    left = torch.empty(0, dtype=torch.long)
    while True:
        if len(left) < batch:  # what is left over waits for the next round: no image is twice in a batch
            left = torch.randperm(count, generator=random)
        yield left[:batch]
        left = left[batch:]


def _parts(count: int, batch: int) -> list[slice]:
    """All images in parts of about ``batch``, none of which is a small rest: channels are normalized over each."""
    number = max(count // batch, 1)
    ends = [count * position // number for position in range(number + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]
