"""Train the embedded example: a small ResNet on Fashion-MNIST, exported to ONNX with BatchNormalization kept.

Writes ``fashion_resnet.onnx``, ``calib.npz`` (training images, balanced over the classes) and ``eval.npz``
(the whole test set).  The run is seeded; for a given CPU, thread count and torch version it is repeatable.
"""

from __future__ import annotations

import gzip
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, relu

log = logging.getLogger("fashion_mnist")

DATA_DIR = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
OUT_DIR = Path(__file__).resolve().parents[2] / "calib_data"
NUM_CLASSES = 10
MEAN, STD = 0.2860, 0.3530  # of the training pixels, scaled to [0, 1]

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, 1, 28, 28), and their labels, uint8 (N,)."""

    images: UInt8
    labels: UInt8

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | npt.NDArray[np.intp]) -> Split:
        return Split(self.images[index], self.labels[index])


def read_idx(path: Path) -> UInt8:
    """Read a gzipped IDX file of unsigned bytes (magic 0x0000_08_ndim, then big-endian dimensions)."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    ndim = raw[3]
    shape = np.frombuffer(raw, ">u4", count=ndim, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def load_split(folder: Path, name: str) -> Split:
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    return Split(images[:, None], read_idx(folder / f"{name}-labels-idx1-ubyte.gz"))


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.shortcut is None else self.shortcut(x)
        out = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(out)) + identity)


class ResNet(nn.Module):
    """Basic-block ResNet for 1 x 28 x 28 inputs; every stage after the first halves the resolution."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), depths: tuple[int, ...] = (1, 1, 2)) -> None:
        super().__init__()
        channels = widths[0]
        self.conv = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        blocks = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                blocks.append(BasicBlock(channels, width, stride=2 if stage > 0 and i == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def augment(x: Tensor, max_shift: int = 2, max_erase: int = 12) -> Tensor:
    """Random horizontal flip, shift and (for half of the images) erasing, drawn per image; x in [0, 1]."""
    n, _, height, width = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(3), x)

    rows = torch.randint(2 * max_shift + 1, (n, 1)) + torch.arange(height)
    cols = torch.randint(2 * max_shift + 1, (n, 1)) + torch.arange(width)
    padded = pad(x, [max_shift] * 4)
    x = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], cols[:, None, :]][:, None]

    def band(size: int) -> Tensor:
        """Per image, a boolean mask of `size` positions that is true over a random interval."""
        length = torch.randint(2, max_erase + 1, (n, 1))
        start = (torch.rand(n, 1) * (size - length + 1)).long()
        position = torch.arange(size)
        return (position >= start) & (position < start + length)

    erased = band(height)[:, :, None] & band(width)[:, None, :] & (torch.rand(n, 1, 1) < 0.5)
    return x.masked_fill(erased[:, None], MEAN)


def train(split: Split, epochs: int, batch_size: int, lr: float, bf16: bool) -> ResNet:
    model = ResNet()
    images, labels = torch.tensor(split.images), torch.tensor(split.labels, dtype=torch.long)
    steps = len(split) // batch_size
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, epochs=epochs, steps_per_epoch=steps, pct_start=0.2
    )
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(split))
        for step in range(steps):  # the last, incomplete batch is dropped
            batch = order[step * batch_size : (step + 1) * batch_size]
            x = (augment(images[batch].float() / 255) - MEAN) / STD
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = cross_entropy(logits.float(), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
            total += loss.item()
        if not math.isfinite(total):
            raise RuntimeError(f"training diverged in epoch {epoch + 1}")
        seconds = time.perf_counter() - start
        log.info("epoch %2d/%d  loss %.4f  %.1f s", epoch + 1, epochs, total / steps, seconds)
    model.eval()
    return model


def export(model: ResNet, path: Path) -> None:
    # The TorchScript-based exporter in PRESERVE mode is the one that leaves BatchNormalization unfused; the
    # model is in eval mode, so the nodes are in inference form.
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )
    onnx.checker.check_model(str(path), full_check=True)


def top1(path: Path, split: Split, batch_size: int = 500) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    correct = 0
    for i in range(0, len(split), batch_size):
        batch = split[i : i + batch_size]
        x = (batch.images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        (logits,) = session.run(["logits"], {"image": x})
        correct += int((logits.argmax(1) == batch.labels).sum())
    return correct / len(split)


def choose_calibration(split: Split, test: Split, size: int, seed: int) -> Split:
    """Draw `size` images balanced over the classes (to within one), none of which occurs in the test set."""
    rng = np.random.default_rng(seed)
    seen = {image.tobytes() for image in test.images}
    chosen: list[int] = []
    for label in range(NUM_CLASSES):
        quota = size // NUM_CLASSES + (label < size % NUM_CLASSES)
        candidates = (int(i) for i in rng.permutation(np.flatnonzero(split.labels == label)))
        for i in candidates:
            if quota == 0:
                break
            key = split.images[i].tobytes()
            if key not in seen:  # also skips duplicates among the calibration images
                seen.add(key)
                chosen.append(i)
                quota -= 1
    return split[rng.permutation(np.array(chosen, np.intp))]


def save_split(path: Path, split: Split) -> None:
    np.savez_compressed(
        path,
        images=split.images,
        labels=split.labels,
        mean=np.array([MEAN], np.float32),
        std=np.array([STD], np.float32),
    )


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, path_type=Path), default=DATA_DIR, help="IDX folder.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT_DIR, help="Output folder.")
@click.option("--epochs", type=click.IntRange(min=1), default=45)
@click.option("--batch-size", type=click.IntRange(min=1), default=128)
@click.option("--lr", type=float, default=0.2, help="Peak learning rate of the one-cycle schedule.")
@click.option("--calib-size", type=click.IntRange(min=1), default=1024)
@click.option("--bf16/--fp32", default=True, help="Arithmetic of the forward and backward passes.")
@click.option("--threads", type=click.IntRange(min=1), default=2)
@click.option("--seed", type=int, default=0)
@click.option(
    "--holdout",
    type=click.IntRange(min=0),
    default=0,
    help="Leave out the last N training images and report top-1 on them, not on the test set; set --out too.",
)
def main(
    data: Path,
    out: Path,
    epochs: int,
    batch_size: int,
    lr: float,
    calib_size: int,
    bf16: bool,
    threads: int,
    seed: int,
    holdout: int,
) -> None:
    """Train the example model on Fashion-MNIST and write it with its calibration and evaluation data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)

    full, test = load_split(data, "train"), load_split(data, "t10k")
    fit_size = len(full) - holdout
    model = train(full[:fit_size], epochs, batch_size, lr, bf16)

    out.mkdir(parents=True, exist_ok=True)
    model_path = out / "fashion_resnet.onnx"
    export(model, model_path)
    save_split(out / "calib.npz", choose_calibration(full[:fit_size], test, calib_size, seed))
    save_split(out / "eval.npz", test)
    name, split = ("held-out", full[fit_size:]) if holdout else ("test", test)
    log.info("top-1 on %d %s images: %.2f %%", len(split), name, 100 * top1(model_path, split))


if __name__ == "__main__":
    main()
