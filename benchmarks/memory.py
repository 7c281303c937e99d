"""Peak memory of `quantize` on a folder of many images, beside that on a few of them.

    python -m benchmarks.memory --images 10000

What a few images take is the model's own use: the process, its libraries, the model, and steps and forward passes over
a batch. Each run is a process of its own; the folder, of JPEGs with 224 x 224 pixels, is made once in --folder.
"""

import argparse
import functools
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pdq_export
from benchmarks.measure import peak_memory
from pdq_export.commands.quantize import Progress
from pdq_export.torch_module import export_module

SIDE = 224
FEW = 64
STEPS = 4
OF_EVALUATION = ("validate", "rerun")


def make_folder(folder: Path, count: int) -> None:
    """JPEGs of smooth noise, and what they are normalized with; those that are there already are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocess.toml").write_text("mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n")
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06}.jpg"
        coarse = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        if not path.exists():
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=80)


def network() -> torch.nn.Module:
    """Small, so that memory and time are those of images: the widest tensor has a third of the values of an image."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 4), (16, 16, 1), (16, 32, 4)):
        layers += [torch.nn.Conv2d(inputs, outputs, 3, stride, 1), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10))


def measure(model: Path, folder: Path, few: Path, images: int, stage: str) -> dict[str, int]:
    """The peaks until calibration ends and until evaluation ends, in bytes, with ``images`` in that of ``stage``."""
    torch.set_num_threads(1)
    peaks: dict[str, int] = {}

    def watch(at: Progress) -> None:
        part = "evaluation" if at.stage in OF_EVALUATION else "calibration"
        peaks[part] = peak_memory()

    pdq_export.quantize(
        model,
        calib=folder if stage == "calibration" else few,
        eval=folder if stage == "evaluation" else few,
        samples=images if stage == "calibration" else FEW,
        iters=STEPS,
        correction_iters=1,
        device="cpu",
        reduce_range=True,
        progress=watch,
    )
    peaks["evaluation"] = peak_memory()
    return peaks


def _apart(model: Path, folder: Path, few: Path, images: int, stage: str) -> dict[str, int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (model, folder, few, images, stage))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line of JSON for each stage; 1 where many images take more than --limit beside a few."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where images are made, by default a temporary folder")
    parser.add_argument("--stages", nargs="+", default=["calibration", "evaluation"])
    parser.add_argument("--limit", type=float, default=1.0, help="in GB (10^9 bytes)")
    options = parser.parse_args(arguments)
    too_much = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "images"
        few = folder.with_name(f"{folder.name}-few")
        make_folder(folder, options.images)
        make_folder(few, FEW)
        model = Path(scratch) / "model.onnx"
        example = torch.zeros(1, 3, SIDE, SIDE)
        model.write_bytes(export_module(network().eval(), example).SerializeToString())
        run = functools.partial(_apart, model)
        for stage in options.stages:
            least = run(few, few, FEW, stage)[stage]
            most = run(folder, few, options.images, stage)[stage]
            too_much |= most - least > options.limit * 1e9
            line = {"stage": stage, "images": options.images, "few": least, "many": most, "beside": most - least}
            print(json.dumps(line), flush=True)
    return 1 if too_much else 0


if __name__ == "__main__":
    sys.exit(main())
