"""The six networks of the paper: their size as they are; import, blocks and whole runs with fewer channels."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from benchmarks import architectures
from benchmarks.architectures import (
    ARCHITECTURES,
    BasicBlock,
    Bottleneck,
    MNASNet,
    MobileNetV2,
    RegNetX,
    ResNet,
    export,
    randomized,
)
from pdq_export.commands.quantize import quantize
from pdq_export.frontend import import_model
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths

SIZE = 64
TINY = {"samples": 4, "iters": 1, "correction_iters": 1, "batch_size": 4}


def narrower(stages: Sequence[tuple[int, ...]], position: int) -> tuple[tuple[int, ...], ...]:
    """Stages with a quarter of the output channels, which are at this position."""
    return tuple((*stage[:position], stage[position] // 4, *stage[position + 1 :]) for stage in stages)


class NarrowMobileNetV2(MobileNetV2):
    STAGES = narrower(MobileNetV2.STAGES, 1)


class NarrowMNASNet(MNASNet):
    STAGES = narrower(MNASNet.STAGES, 0)


class ShortMNASNet(MNASNet):
    """Kernels of 3 and 5, units with and without a skip."""

    STAGES = ((24, 3, 2, 3, 2), (40, 5, 2, 6, 2))


# Every unit of each, with fewer channels: what is imported does not depend on them, and the 25 million weights of
# ResNet-50 take seconds wherever they pass.
NARROW: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2), 10, width=16),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3), 10, width=16),
    "mobilenetv2": lambda: NarrowMobileNetV2(10),
    "regnetx_600m": lambda: RegNetX((48, 96, 96, 120), (1, 3, 5, 7), 24, 10),
    "regnetx_3200m": lambda: RegNetX((48, 96, 96, 144), (2, 6, 15, 2), 48, 10),
    "mnasnet": lambda: NarrowMNASNet(10),
}
# One network in its depth, of the others every kind of unit that they have. Of each kind one is at 2/2 with
# BatchNormalization, and one at 4/4 with it folded.
RUNS: dict[str, tuple[str, bool, Callable[[], nn.Module]]] = {
    "resnet18": ("2/2", True, lambda: ResNet(BasicBlock, (1, 1, 1, 1), 10, width=16)),
    "resnet50": ("4/4", False, lambda: ResNet(Bottleneck, (2, 1, 1, 1), 10, width=16)),
    "mobilenetv2": ("2/2", True, NARROW["mobilenetv2"]),
    "mnasnet": ("4/4", False, lambda: ShortMNASNet(10)),
    "regnetx_600m": ("2/2", True, lambda: RegNetX((48, 96, 96, 120), (1, 2, 1, 1), 24, 10)),
    "regnetx_3200m": ("4/4", False, lambda: RegNetX((48, 96, 96, 144), (1, 2, 1, 1), 48, 10)),
}

# The published figures, but for MNASNet x2.0: its count is that of BRECQ's definition.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenetv2": 3_504_872,
    "regnetx_600m": 6_196_040,
    "regnetx_3200m": 15_296_552,
    "mnasnet": 12_469_944,
}

# What the paper's published code reconstructs together, by module: every residual, inverted-residual and X block, with
# or without a skip, and each layer outside of them. MNASNet's separable stem is three layers outside of them.
UNITS = {
    "resnet18": "conv1 layer1.0 layer1.1 layer2.0 layer2.1 layer3.0 layer3.1 layer4.0 layer4.1 fc",
    "resnet50": "conv1 layer1.0 layer1.1 layer1.2 layer2.0 layer2.1 layer2.2 layer2.3 "
    "layer3.0 layer3.1 layer3.2 layer3.3 layer3.4 layer3.5 layer4.0 layer4.1 layer4.2 fc",
    "mobilenetv2": " ".join(f"features.{position}" for position in range(19)) + " classifier.1",
    "regnetx_600m": "stem.conv s1.b1 s2.b1 s2.b2 s2.b3 s3.b1 s3.b2 s3.b3 s3.b4 s3.b5 "
    "s4.b1 s4.b2 s4.b3 s4.b4 s4.b5 s4.b6 s4.b7 head.fc",
    "regnetx_3200m": "stem.conv s1.b1 s1.b2 s2.b1 s2.b2 s2.b3 s2.b4 s2.b5 s2.b6 "
    "s3.b1 s3.b2 s3.b3 s3.b4 s3.b5 s3.b6 s3.b7 s3.b8 s3.b9 s3.b10 s3.b11 s3.b12 s3.b13 s3.b14 s3.b15 "
    "s4.b1 s4.b2 head.fc",
    "mnasnet": "layers.0 layers.3 layers.6 layers.8.0 layers.8.1 layers.8.2 layers.9.0 layers.9.1 layers.9.2 "
    "layers.10.0 layers.10.1 layers.10.2 layers.11.0 layers.11.1 layers.12.0 layers.12.1 layers.12.2 layers.12.3 "
    "layers.13.0 layers.14 classifier.1",
}

every_network = pytest.mark.parametrize("name", ARCHITECTURES)
both_exports = pytest.mark.parametrize("keep_batch_norm", [True, False], ids=["kept", "folded"])


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


@functools.lru_cache(maxsize=1)  # both exports of one after the other
def build(name: str) -> nn.Module:
    return randomized(NARROW[name], seed=0)


def exported(network: nn.Module, folder: Path, *, keep_batch_norm: bool) -> Path:
    path = folder / "network.onnx"
    export(network, path, keep_batch_norm=keep_batch_norm, image_size=SIZE)
    return path


def module_name(node: str) -> str:
    """``/features/features.1/conv/conv.0/Conv`` -> ``features.1.conv.0``: a child of a Sequential repeats its name."""
    names: list[str] = []
    for scope in node.split("/")[1:-1]:
        if names and scope.startswith(f"{names[-1]}."):
            names[-1] = scope
        else:
            names.append(scope)
    return ".".join(names)


@every_network
def test_size_and_statistics(name: str) -> None:
    model = architectures.build(name, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    with torch.no_grad():
        logits = model(torch.from_numpy(images(4)))
    assert logits.shape == (4, 1000)
    assert 0.1 < float(logits.std()) < 10
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.running_var.min() > 0.0 and norm.running_mean.abs().max() > 0.0 for norm in norms)


@both_exports
@every_network
def test_import_and_blocks(name: str, keep_batch_norm: bool, tmp_path: Path) -> None:
    model = onnx.load(exported(build(name), tmp_path, keep_batch_norm=keep_batch_norm))
    kept = any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert kept is keep_batch_norm
    prepared = prepare(model)
    assert bool(prepared.statistics) is keep_batch_norm

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": images(2)})
    with torch.no_grad():
        (found,) = import_model(prepared.model)(torch.from_numpy(images(2)))
    assert np.linalg.norm(found.numpy() - expected) < 1e-4 * np.linalg.norm(expected)

    plan = make_plan(prepared.model, PlanOptions.of(BitWidths(4, 4)))
    blocks = [sorted(module_name(layer.node) for layer in block.layers) for block in plan.blocks]
    layers = sorted(layer for block in blocks for layer in block)
    assert blocks == [[layer for layer in layers if f"{layer}.".startswith(f"{unit}.")] for unit in UNITS[name].split()]


@pytest.mark.usefixtures("short_search")
@every_network
def test_quantized_file_agrees_with_its_simulation(name: str, tmp_path: Path) -> None:
    bits, keep_batch_norm, make = RUNS[name]
    path = exported(randomized(make, seed=0), tmp_path, keep_batch_norm=keep_batch_norm)
    report = quantize(path, bits=bits, calib=images(4), options=TINY, device="cpu").report
    (output,) = report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3
    assert output.quantized_simulated.argmax_agreement == 1.0
    assert report.kernels.all_integer
