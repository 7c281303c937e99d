"""A small network whose BatchNormalization has seen images."""

import torch
from torch import Tensor, nn

SIDE = 16
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def photographs(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """Smooth colour patterns with pixels of 0..1, [count, 3, side, side]."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=random)
    return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def normalized(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def seen(images: Tensor, *, normalizes: bool = True) -> nn.Module:
    """Two layers, one strided, and a classifier; ``normalizes``: with BatchNormalization, which has seen ``images``."""
    torch.manual_seed(3)

    def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(outputs, momentum=1.0) if normalizes else nn.Identity()
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not normalizes), norm, nn.ReLU()]

    network = nn.Sequential(*layer(3, 8, 1), *layer(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        network.train()(images)
    return network.eval()
