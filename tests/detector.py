"""A detector like YOLOv8 with random weights: C2f units, SPPF, a path aggregation network, decoupled heads with DFL."""

import io
import warnings

import onnx
import torch
from torch import Tensor, nn

from benchmarks.architectures import randomized

CLASSES, BINS = 6, 8
STRIDES = (8, 16, 32)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Bottleneck(nn.Module):
    """Two 3x3 with or without a skip."""

    def __init__(self, width: int, *, skip: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.skip = _conv(width, width, 3), _conv(width, width, 3), skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.skip else y


class C2f(nn.Module):
    """1x1, split in halves, bottlenecks one behind the other, all of them concatenated, 1x1."""

    def __init__(self, inputs: int, outputs: int, count: int, *, skip: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = _conv(inputs, 2 * half), _conv((2 + count) * half, outputs)
        self.m = nn.ModuleList(Bottleneck(half, skip=skip) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for unit in self.m:
            parts.append(unit(parts[-1]))
        return self.cv2(torch.cat(parts, 1))  # type: ignore[no-any-return]


class SPPF(nn.Module):
    """1x1, three max pools one behind the other, all of them concatenated, 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = inputs // 2
        self.cv1, self.cv2, self.pool = _conv(inputs, half), _conv(4 * half, outputs), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.cv2(torch.cat(parts, 1))  # type: ignore[no-any-return]


class Detector(nn.Module):
    """Images [N, 3, S, S] to [N, 4 + classes, A]: boxes (centre and size in pixels), then the scores of classes."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        w = [width * factor for factor in (1, 2, 4, 8, 16)]
        self.stem = nn.Sequential(_conv(3, w[0], 3, 2), _conv(w[0], w[1], 3, 2), C2f(w[1], w[1], 1, skip=True))
        self.down3 = nn.Sequential(_conv(w[1], w[2], 3, 2), C2f(w[2], w[2], 2, skip=True))
        self.down4 = nn.Sequential(_conv(w[2], w[3], 3, 2), C2f(w[3], w[3], 2, skip=True))
        self.down5 = nn.Sequential(_conv(w[3], w[4], 3, 2), C2f(w[4], w[4], 1, skip=True), SPPF(w[4], w[4]))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.top4, self.top3 = C2f(w[4] + w[3], w[3], 1, skip=False), C2f(w[3] + w[2], w[2], 1, skip=False)
        self.pan4, self.low4 = _conv(w[2], w[2], 3, 2), C2f(w[2] + w[3], w[3], 1, skip=False)
        self.pan5, self.low5 = _conv(w[3], w[3], 3, 2), C2f(w[3] + w[4], w[4], 1, skip=False)
        self.boxes = nn.ModuleList(self._head(inputs, w[2], 4 * BINS) for inputs in w[2:])
        self.classes = nn.ModuleList(self._head(inputs, w[2], CLASSES) for inputs in w[2:])
        self.dfl = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data.copy_(torch.arange(BINS, dtype=torch.float).view(1, BINS, 1, 1))
        with torch.no_grad():
            for head in self.classes:
                head[-1].bias.fill_(-4.0)  # type: ignore[index,union-attr]
                head[-1].weight.mul_(3.0)  # type: ignore[index,union-attr]
        centres = [torch.arange(size // stride) + 0.5 for stride in STRIDES]
        grids = [torch.stack(torch.meshgrid(c, c, indexing="xy")).flatten(1) for c in centres]
        self.register_buffer("anchors", torch.cat(grids, 1)[None])
        pixels = [torch.full((grid.shape[1],), stride) for grid, stride in zip(grids, STRIDES, strict=True)]
        self.register_buffer("strides", torch.cat(pixels)[None])

    def _head(self, inputs: int, width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(_conv(inputs, width, 3), _conv(width, width, 3), nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.down3(self.stem(x))
        p4 = self.down4(p3)
        p5 = self.down5(p4)
        n4 = self.top4(torch.cat([self.up(p5), p4], 1))
        n3 = self.top3(torch.cat([self.up(n4), p3], 1))
        n4 = self.low4(torch.cat([self.pan4(n3), n4], 1))
        n5 = self.low5(torch.cat([self.pan5(n4), p5], 1))
        levels = [
            torch.cat([box(n), scores(n)], 1).flatten(2)
            for box, scores, n in zip(self.boxes, self.classes, (n3, n4, n5), strict=True)
        ]
        boxes, scores = torch.cat(levels, 2).split((4 * BINS, CLASSES), 1)
        bins = boxes.view(boxes.shape[0], 4, BINS, -1).transpose(1, 2).softmax(1)
        left, right = self.dfl(bins).view(boxes.shape[0], 4, -1).chunk(2, 1)
        low, high = self.anchors - left, self.anchors + right
        return torch.cat([torch.cat([(low + high) / 2, high - low], 1) * self.strides, scores.sigmoid()], 1)


def detector(*, size: int = 64, width: int = 4, seed: int = 0) -> onnx.ModelProto:
    """The network as the older exporter of torch writes it, without BatchNormalization: 64 convolutions."""
    model, buffer = randomized(lambda: Detector(size, width), seed=seed, size=size), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, size, size),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["detections"],
            dynamic_axes={"image": {0: "N"}, "detections": {0: "N"}},
        )
    return onnx.load_from_string(buffer.getvalue())
