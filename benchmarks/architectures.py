"""The six networks of PD-Quant's table 2, with random weights, and their export with and without BatchNormalization.

Layers, widths and the names of parameters are those of the checkpoints that BRECQ publishes and PD-Quant starts from
(https://github.com/yhhhli/BRECQ/releases/tag/v1.0), so that a checkpoint loads with ``strict=True``. ResNet and MNASNet
are also named as in torchvision, RegNet as in pycls.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride; BatchNormalization follows, so it has no bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """ResNet-18's unit: 3x3, 3x3 (He et al., 2016)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(out + identity)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """ResNet-50's unit: 1x1, 3x3 with the stride, 1x1."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn3(self.conv3(out)) + identity)  # type: ignore[no-any-return]


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """ResNet as in torchvision; ``depths``: units in each of the four stages; ``width``: channels of the stem."""

    def __init__(
        self, unit: type[BasicBlock | Bottleneck], depths: Sequence[int], num_classes: int, width: int = 64
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = width
        stages = []
        for stage, depth in enumerate(depths):
            units = []
            for position in range(depth):
                units.append(unit(channels, width << stage, 2 if stage > 0 and position == 0 else 1))
                channels = (width << stage) * unit.expansion
            stages.append(nn.Sequential(*units))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


class XBlock(nn.Module):
    """RegNetX's unit: 1x1, grouped 3x3 with the stride, 1x1, all of one width (Radosavovic et al., 2020)."""

    def __init__(self, inputs: int, width: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.proj, self.bn = conv(inputs, width, 1, stride), nn.BatchNorm2d(width)
        self.f = nn.Sequential(
            OrderedDict(
                a=conv(inputs, width, 1),
                a_bn=nn.BatchNorm2d(width),
                a_relu=nn.ReLU(),
                b=conv(width, width, 3, stride, width // group_width),
                b_bn=nn.BatchNorm2d(width),
                b_relu=nn.ReLU(),
                c=conv(width, width, 1),
                c_bn=nn.BatchNorm2d(width),
            )
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.proj is None else self.bn(self.proj(x))
        return self.relu(identity + self.f(x))  # type: ignore[no-any-return]


class RegNetX(nn.Module):
    """RegNetX as in pycls, from the widths and depths that its generator gives."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], group_width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=conv(3, 32, 3, 2), bn=nn.BatchNorm2d(32), relu=nn.ReLU()))
        channels = 32
        stages = []
        for width, depth in zip(widths, depths, strict=True):
            units: OrderedDict[str, nn.Module] = OrderedDict()
            for position in range(depth):
                units[f"b{position + 1}"] = XBlock(channels, width, 2 if position == 0 else 1, group_width)
                channels = width
            stages.append(nn.Sequential(units))
        self.s1, self.s2, self.s3, self.s4 = stages
        self.head = nn.Sequential(
            OrderedDict(avg_pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.s4(self.s3(self.s2(self.s1(self.stem(x))))))  # type: ignore[no-any-return]


def _inverted_residual(
    inputs: int, hidden: int, outputs: int, kernel: int, stride: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Expansion (where it widens), depthwise convolution, projection without activation."""
    expand = [conv(inputs, hidden, 1), nn.BatchNorm2d(hidden), activation()] if hidden != inputs else []
    depthwise = [conv(hidden, hidden, kernel, stride, hidden), nn.BatchNorm2d(hidden), activation()]
    return nn.Sequential(*expand, *depthwise, conv(hidden, outputs, 1), nn.BatchNorm2d(outputs))


class InvertedResidual(nn.Module):
    """MobileNetV2's unit (Sandler et al., 2018); without a skip where stride or width change."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.skip = stride == 1 and inputs == outputs
        self.conv = _inverted_residual(inputs, inputs * expansion, outputs, 3, stride, nn.ReLU6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """MobileNetV2 x1.0, named as in BRECQ: ``features.N.conv.M``, M counting through the unit."""

    # expansion, output channels, units, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        features: list[nn.Module] = [nn.Sequential(conv(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU6())]
        channels = 32
        for expansion, width, depth, stride in self.STAGES:
            for position in range(depth):
                features.append(InvertedResidual(channels, width, stride if position == 0 else 1, expansion))
                channels = width
        features.append(nn.Sequential(conv(channels, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6()))
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


class MNASNetUnit(nn.Module):
    """MNASNet's inverted residual (Tan et al., 2019)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.skip = stride == 1 and inputs == outputs
        self.layers = _inverted_residual(inputs, inputs * expansion, outputs, kernel, stride, nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)  # type: ignore[no-any-return]


class MNASNet(nn.Module):
    """MNASNet x2.0 as in BRECQ: torchvision's MNASNet-A1 of twice the width, its stem 64 channels wide as well."""

    # output channels, kernel, stride of the first, expansion, units
    STAGES = (
        (48, 3, 2, 3, 3),
        (80, 5, 2, 3, 3),
        (160, 5, 2, 6, 3),
        (192, 3, 1, 6, 2),
        (384, 5, 2, 6, 4),
        (640, 3, 1, 6, 1),
    )

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU()]
        layers += [conv(64, 64, 3, groups=64), nn.BatchNorm2d(64), nn.ReLU(), conv(64, 32, 1), nn.BatchNorm2d(32)]
        channels = 32
        for width, kernel, stride, expansion, depth in self.STAGES:
            first = MNASNetUnit(channels, width, kernel, stride, expansion)
            others = (MNASNetUnit(width, width, kernel, 1, expansion) for _ in range(depth - 1))
            layers.append(nn.Sequential(first, *others))
            channels = width
        layers += [conv(channels, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.layers(x)).flatten(1))  # type: ignore[no-any-return]


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda classes: ResNet(BasicBlock, (2, 2, 2, 2), classes),
    "resnet50": lambda classes: ResNet(Bottleneck, (3, 4, 6, 3), classes),
    "mobilenetv2": MobileNetV2,
    "regnetx_600m": lambda classes: RegNetX((48, 96, 240, 528), (1, 3, 5, 7), 24, classes),
    "regnetx_3200m": lambda classes: RegNetX((96, 192, 432, 1008), (2, 6, 15, 2), 48, classes),
    "mnasnet": MNASNet,
}


def build(name: str, *, seed: int, num_classes: int = 1000) -> nn.Module:
    """The network of ``ARCHITECTURES``, `randomized`."""
    return randomized(lambda: ARCHITECTURES[name](num_classes), seed=seed)


def randomized(make: Callable[[], nn.Module], *, seed: int, size: int = 64) -> nn.Module:
    """A network in eval mode with random weights and BatchNormalization that fits them.

    Scales and shifts are drawn, and the running statistics are those of noise images, so that activations neither
    vanish nor explode and no channel's statistics are trivial. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = make()
        for norm in _batch_norms(model):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.3)
            norm.momentum = None  # the running statistics become a plain mean
        model.train()
        for _ in range(2):
            model(torch.randn(8, 3, size, size))
        for norm in _batch_norms(model):
            norm.momentum = 0.1
    return model.eval()


def _batch_norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def export(model: nn.Module, path: Path, *, keep_batch_norm: bool, image_size: int = 224, dynamic: bool = True) -> None:
    """Write a model in eval mode as ONNX (opset 17): input ``image`` [N, 3, S, S], output ``logits`` [N, K].

    Without ``keep_batch_norm`` the exporter folds BatchNormalization into the convolutions, as it does by default.
    ``dynamic``: any batch size, else 1.
    """
    mode = torch.onnx.TrainingMode.PRESERVE if keep_batch_norm else torch.onnx.TrainingMode.EVAL
    with warnings.catch_warnings():
        # The newer exporter always folds, and needs a package of its own.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, image_size, image_size),),
            str(path),
            dynamo=False,
            training=mode,
            do_constant_folding=not keep_batch_norm,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}} if dynamic else None,
        )
