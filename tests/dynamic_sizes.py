"""Segmentation networks as torch exports them with dynamic height and width, and with fixed ones."""

import io
import warnings

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU())


class FCN(nn.Module):
    """A backbone with residual units, a head, and scores at the size of the image."""

    def __init__(self, units: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(_unit(3, 6, 2), _unit(6, 6))
        self.units = nn.ModuleList(nn.Sequential(_unit(6, 6), nn.Conv2d(6, 6, 3, padding=1)) for _ in range(units))
        self.head = nn.Sequential(_unit(6, 6), nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for unit in self.units:
            y = F.relu(y + unit(y))
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear", align_corners=False)


class DeepLab(nn.Module):
    """Spatial pyramid pooling whose pooled branch goes back to the size of the features, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Sequential(_unit(3, 4, 2), _unit(4, 4)), nn.Sequential(_unit(4, 6, 2), _unit(6, 6))
        self.near, self.far = _unit(6, 4), nn.Sequential(nn.Conv2d(6, 4, 3, padding=2, dilation=2), nn.ReLU())
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.ReLU())
        self.joined, self.skip, self.last = _unit(12, 4), _unit(4, 4), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        high = self.high(low)
        pooled = F.interpolate(self.pooled(high), size=high.shape[-2:], mode="bilinear", align_corners=False)
        y = self.joined(torch.cat([self.near(high), self.far(high), pooled], 1))
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.last(torch.cat([y, self.skip(low)], 1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Three levels; what comes from below is brought to the size of the skip, by resizing or by padding."""

    def __init__(self, *, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.down = nn.ModuleList(nn.Sequential(_unit(i, o), _unit(o, o)) for i, o in ((3, 4), (4, 6), (6, 8)))
        self.up = nn.ModuleList(nn.Sequential(_unit(i, o), _unit(o, o)) for i, o in ((14, 6), (10, 4)))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, unit in enumerate(self.down):
            x = unit(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for unit, skip in zip(self.up, skips[-2::-1], strict=True):
            if self.pad:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                high, wide = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
                x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
            else:
                x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = unit(torch.cat([skip, x], 1))
        return self.last(x)  # type: ignore[no-any-return]


def export(model: nn.Module, *, size: int, dynamic: bool) -> onnx.ModelProto:
    """The model as torch's older exporter writes it, for images [N, 3, S, S], or of any height and width."""
    buffer = io.BytesIO()
    axes = {0: "N", 2: "H", 3: "W"} if dynamic else {0: "N"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.zeros(1, 3, size, size),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": axes, "scores": axes},
        )
    return onnx.load_from_string(buffer.getvalue())
