"""A folder as readers of the documentation have it: a model, images, and the programs that the text calls."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import nn

from pdq_export.torch_module import export_module

from .broken import BROKEN
from .server import write_clients

ROOT = Path(__file__).resolve().parents[2]
SIZE, CLASSES = 16, 4
MEAN, STD = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)

# Programs that blocks call and that do nothing here, with the reason.
LEFT_OUT = {
    "pip": "installs; `.ci/run wheel` does what README's first line says, in an environment of its own",
    "pytest": "is what runs this",
    "torchrun": "starts several processes that import torch each; tests/commands/test_ranks.py starts what it would",
}


class Unit(nn.Module):
    """A residual unit; the names of its layers are torchvision's."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.bn1(self.conv1(image)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(image))


class Net(nn.Module):
    """Two units of a ResNet, the first and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer4 = Unit(3, 32, 2), Unit(32, 64, 2)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer4(self.layer1(image)).mean((2, 3)))


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Gratings [N, H, W, 3] in as many directions as there are classes, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    y, x = np.mgrid[:SIZE, :SIZE]
    angle = labels[:, None, None] * np.pi / CLASSES
    waves = np.sin(0.8 * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6.3, (count, 1, 1)))
    images = 0.5 + 0.25 * waves[..., None] + 0.1 * rng.standard_normal((count, SIZE, SIZE, 3))
    return (255 * images.clip(0, 1)).astype(np.uint8), labels


def normalized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = ((images / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels, dtype=np.float32)


def trained() -> nn.Module:
    torch.manual_seed(0)
    net, (images, labels) = Net(), pictures(256, seed=1)
    inputs, targets = torch.from_numpy(normalized(images)), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(40):
        at = torch.arange(32) + 32 * step
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[at % 256]), targets[at % 256]).backward()
        optimizer.step()
    return net.eval()


def with_output(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    (output,), last = model.graph.output, model.graph.node[-1]
    last.output[0] = output.name = name
    return model


def write_folder(folder: Path, count: int) -> None:
    images, labels = pictures(count, seed=2)
    folder.mkdir()
    names = [f"{number:03d}.png" for number in range(count)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    rows = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows, ""]))
    (folder / "preprocess.toml").write_text(f"mean = {MEAN.tolist()}\nstd = {STD.tolist()}\n")


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: NDArray[np.float32]) -> None:
        self.images = iter(images[:, None])

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image}


def write_example(folder: Path) -> None:
    """The embedded model with the first of its images."""
    folder.mkdir()
    for name, most in (("calib.npz", 256), ("eval.npz", 200)):
        arrays = np.load(ROOT / "calib_data" / name)
        np.savez(
            folder / name,
            **{
                key: arrays[key][:most] if arrays[key].ndim in (1, 4) and len(arrays[key]) > most else arrays[key]
                for key in arrays
            },
        )
    shutil.copy(ROOT / "calib_data" / "fashion_resnet.onnx", folder)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every page starts from, and below ``made`` what pages may ask for."""
    folder = tmp_path_factory.mktemp("given")
    onnx.save(with_output("scores", export_module(trained(), torch.zeros(1, 3, SIZE, SIZE))), folder / "model.onnx")
    write_folder(folder / "images", 120)  # a hundred can be held back
    images, labels = pictures(200, seed=3)
    np.savez(folder / "test.npz", images=images.transpose(0, 3, 1, 2), labels=labels, mean=MEAN, std=STD)
    write_example(folder / "calib_data")
    shutil.copytree(ROOT / "recipes" / "ci", folder / "recipes" / "ci")
    return folder


@pytest.fixture(scope="session")
def programs(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the programs that blocks call."""
    folder = tmp_path_factory.mktemp("bin")
    for name, reason in LEFT_OUT.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n# {reason}\n")
        program.chmod(0o755)
    address = str(folder / "socket")
    write_clients(folder, address)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.docs.server", address, str(given / "calib_data")]
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield folder
        server.terminate()


@pytest.fixture(scope="session")
def made(given: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a file that pages may take for granted, which is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("made")

    def quantized(*bits: str) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            data = ["--calib", str(given / "images"), "--eval", str(given / "test.npz"), "--output", str(path)]
            command = [programs / "pdq-export", "quantize", str(given / "model.onnx"), *bits, *data]
            subprocess.run(command, check=True, capture_output=True)

        return make

    def static(path: Path) -> None:
        images = normalized(pictures(32, seed=2)[0])
        quant_pre_process(given / "model.onnx", folder / "folded.onnx", skip_symbolic_shape=True)
        quantize_static(
            folder / "folded.onnx",
            path,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
        )

    makers: dict[str, Callable[[Path], None]] = {
        **BROKEN,
        "model-int8.onnx": static,
        "model-8-8.onnx": quantized("--bits", "8/8"),
        "model-w4a4.onnx": quantized("--bits", "4/4"),
        "model-4-4.onnx": quantized("--bits", "4/4"),
    }

    def get(name: str) -> Path:
        if not (folder / name).exists():
            makers[name](folder / name)
        return folder / name

    return get
