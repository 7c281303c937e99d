"""Random views of calibration images, for steps whose FP32 targets are computed anew."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST_AREA = 0.4
_LARGEST_ASPECT = 4 / 3


def random_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random rectangle of every image [N, C, H, W], resized to H x W (bilinear), half of them mirrored.

    The rectangle has 40 to 100 % of the area and at most 4:3 of the image's aspect ratio or its inverse.
    """
    count = len(images)
    draws = torch.rand(5, count, generator=generator, device=generator.device).to(images)
    area = _SMALLEST_AREA + (1 - _SMALLEST_AREA) * draws[0]
    aspect = torch.exp((2 * draws[1] - 1) * math.log(_LARGEST_ASPECT))
    height, width = (area / aspect).sqrt().clamp(max=1), (area * aspect).sqrt().clamp(max=1)
    # Image coordinates are -1 to 1: x_in = a x_out + b.
    maps = images.new_zeros(count, 2, 3)
    maps[:, 0, 0] = width * torch.where(draws[2] < 0.5, -1.0, 1.0)
    maps[:, 1, 1] = height
    maps[:, 0, 2] = (2 * draws[3] - 1) * (1 - width)
    maps[:, 1, 2] = (2 * draws[4] - 1) * (1 - height)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
