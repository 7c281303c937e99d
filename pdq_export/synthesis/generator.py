"""A small network that draws images from latent vectors."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 128
_WIDTH, _NARROWEST = 64, 16
_BASE = 8  # the longer side of what a latent vector becomes first
_SLOPE = 0.2


class Generator(nn.Module):
    """Latent vectors [N, `LATENT`] to images [N, channels, height, width], each channel with mean 0 and variance 1.

    Channels are normalized over the batch, as those of every layer are. Weights are drawn from ``random``.
    """

    def __init__(self, channels: int, size: tuple[int, int], random: torch.Generator) -> None:
        super().__init__()
        doublings = max(math.ceil(math.log2(max(size) / _BASE)), 0)
        self._size = size
        self._base = tuple(math.ceil(side / 2**doublings) for side in size)
        widths = [max(_WIDTH // 2**position, _NARROWEST) for position in range(doublings + 1)]
        self.first = nn.Linear(LATENT, widths[0] * math.prod(self._base), bias=False)
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs])
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1, bias=False)
        self.scales = nn.ParameterList([torch.ones(width) for width in widths])
        self.shifts = nn.ParameterList([torch.zeros(width) for width in widths])
        with torch.no_grad():
            for layer in (self.first, *self.layers, self.last):
                layer.weight.normal_(0.0, layer.weight[0].numel() ** -0.5, generator=random)

    def forward(self, latent: Tensor) -> Tensor:
        x = self._activated(self.first(latent).unflatten(1, (-1, *self._base)), 0)
        for position, layer in enumerate(self.layers, 1):
            x = self._activated(layer(F.interpolate(x, scale_factor=2.0, mode="nearest")), position)
        height, width = self._size
        return _normalized(self.last(x)[:, :, :height, :width])

    def _activated(self, x: Tensor, position: int) -> Tensor:
        return F.leaky_relu(_normalized(x, self.scales[position], self.shifts[position]), _SLOPE)


def _normalized(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    return F.batch_norm(x, None, None, scale, shift, training=True)
