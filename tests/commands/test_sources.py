"""Whole runs on data and models as Python has them: the same samples give the same file, whatever they come from."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from pdq_export.cli import app
from pdq_export.commands.quantize import Result, quantize
from pdq_export.data import ImageSet
from pdq_export.errors import DataError

from .test_quantize import FAST, content, images, small

X = images(24)
Y = np.arange(24) % 5
TENSORS = torch.from_numpy(X), torch.from_numpy(Y)
MODEL = small()


def run(**arguments: Any) -> Result:
    return quantize(MODEL, bits=(4, 8), options=FAST, device="cpu", **arguments)


@pytest.fixture  # plans are those of the single test
def expected() -> Result:
    return run(calib=X, eval=(X, Y))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(TensorDataset(*TENSORS), batch_size=5),
        lambda: ((x, y) for x, y in zip(X, Y, strict=True)),
        lambda: [{"image": X, "labels": Y}],
    ],
)
def test_whatever_the_samples_come_from(expected: Result, make: Callable[[], Any]) -> None:
    result = run(calib=make(), eval=make())
    assert content(result.model) == content(expected.model)
    assert result.report.quantized_accuracy == expected.report.quantized_accuracy
    assert result.plan.bits.activation == 8
    assert result.report.settings["made_by"] == expected.report.settings["made_by"]


def test_labels_are_of_what_is_judged(expected: Result) -> None:
    assert run(calib=X, eval=X, labels=Y).report.quantized_accuracy == expected.report.quantized_accuracy
    on_calibration = run(calib=X, labels=Y)
    assert on_calibration.report.quantized_accuracy is not None
    assert on_calibration.report.quantized_accuracy.images == FAST["samples"]
    with pytest.raises(DataError, match="labels of shape 3 for 24 images"):
        run(calib=X, eval=X, labels=Y[:3])


def test_labels_beside_a_folder_with_a_damaged_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (12, *X.shape[2:], 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    (tmp_path / "03.png").write_bytes(b"damaged")
    good = [number for number in range(12) if number != 3]
    arrays = (pixels[good].transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    labels = np.arange(12) % 5
    expected = run(calib=arrays, labels=labels[good]).report
    found = run(calib=tmp_path, labels=labels, pixel_range="0..1").report
    assert found.float_accuracy == expected.float_accuracy is not None
    assert found.quantized_accuracy == expected.quantized_accuracy


FUNCTION = """
import numpy as np
print("no result")
def calibration():
    return (x for x in np.load("images.npy"))
"""


def test_a_function_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_loaders", raising=False)
    onnx.save(small(), "model.onnx")
    np.save("images.npy", X)
    Path("users_loaders.py").write_text(FUNCTION)

    def command(*extra: str, calib: str = "users_loaders:calibration") -> Any:
        budget = ["--samples", "16", "--iters", "4", "--correction-iters", "1", "--device", "cpu", "--work-dir", "work"]
        return CliRunner().invoke(app, ["quantize", "model.onnx", "--calib", calib, *budget, *extra])

    first = command("-o", "first.onnx", "--json")
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)  # what the module prints is no part of it
    assert report["settings"]["asked"]["calib"] == "users_loaders:calibration"
    assert report["settings"]["calibration"].startswith("users_loaders:calibration: 16 images")
    again = command("-o", "again.onnx", "--resume")
    assert "2 of 2 blocks are finished" in again.stderr
    assert Path("again.onnx").read_bytes() == Path("first.onnx").read_bytes()
    by_path = command("-o", "path.onnx", "--resume", calib="images.npy")  # the same images are the same run
    assert "2 of 2 blocks are finished" in by_path.stderr
    for source, message in (("nowhere:make", "no module 'nowhere'"), ("users_loaders:make", "has no 'make'")):
        refused = command("-o", "refused.onnx", calib=source)
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert not Path("refused.onnx").exists()


def test_images_that_are_made_as_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes as of images that are held, of bytes in memory and of a folder that is decoded again."""
    pixels = np.random.default_rng(5).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "preprocess.toml").write_text("mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n")
    for number, image in enumerate(pixels):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number:02}.png")
    options = {"model": MODEL, "bits": "4/4", "options": FAST, "device": "cpu"}
    held = quantize(calib=ImageSet.from_array(pixels, **statistics), **options)
    monkeypatch.setattr("pdq_export.work._HELD", 0)
    monkeypatch.setattr("pdq_export.data.folder.HELD", 0)
    in_memory = quantize(calib=ImageSet.from_array(pixels, **statistics), **options)
    on_disk = quantize(calib=tmp_path, eval=tmp_path, **options)
    again = quantize(calib=tmp_path, max_memory="8GB", **options)
    for other in (in_memory, on_disk, again):
        assert other.model.graph == held.model.graph
        assert other.report.settings["made_by"]["calibration"] == held.report.settings["made_by"]["calibration"]
    assert on_disk.report.settings["evaluation_images_seen_in_calibration"] == 16
