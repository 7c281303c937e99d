"""Images that are not read as in training are warned of, with the figure, and right ones are not."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pdq_export import quantize
from pdq_export.commands.settle import choose, plan_options
from pdq_export.config.config import Config
from pdq_export.data import ImageSet, InputSpec, Preprocess, load_images
from pdq_export.normalization import Fit, measure_fit
from pdq_export.work import PlannedModel, import_planned, open_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAST = {"samples": 24, "iters": 0, "method": "nearest", "device": "cpu"}


def pictures(count: int, seed: int) -> np.ndarray:
    """Bytes [N, 3, 16, 16]: red is bright, blue is dark, and images differ."""
    generator = np.random.default_rng(seed)
    level = np.array([0.6, 0.45, 0.3]).reshape(1, 3, 1, 1) + generator.normal(0, 0.1, (count, 1, 1, 1))
    pixels = level + generator.normal(0, 0.2, (count, 3, 16, 16))
    return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)


def image_set(pixels: np.ndarray, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> ImageSet:
    return ImageSet.from_array(pixels, mean=mean, std=std)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 5)
    )
    net(torch.from_numpy(image_set(pictures(512, 1)).images))
    return net


def measure(model: nn.Module, images: ImageSet) -> Fit | None:
    config = Config()
    file, _ = open_model(model, torch.zeros(2, 3, 16, 16))
    planned = PlannedModel.of(file, plan_options(config, choose(config)), config.file)
    return measure_fit(import_planned(planned), planned.plan, planned.prepared.statistics, images)


PIXELS = pictures(40, 2)
CASES = {
    "right": (image_set(PIXELS), None),
    "right floats": (ImageSet.from_array(image_set(PIXELS).images), None),
    "exchanged": (image_set(PIXELS[:, ::-1]), "with red and blue exchanged"),
    "exchanged floats": (ImageSet.from_array(image_set(PIXELS[:, ::-1]).images), "with red and blue exchanged"),
    "0..1": (image_set(PIXELS, (0.0,) * 3, (1.0,) * 3), "with ImageNet's mean and std"),
    "0..255": (image_set(PIXELS, (0.0,) * 3, (1 / 255,) * 3), "with ImageNet's mean and std"),
    "0..255 floats": (ImageSet.from_array(PIXELS.astype(np.float32)), "with ImageNet's mean and std"),
    "all wrong": (ImageSet.from_array(image_set(PIXELS).images * 40 - 300), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_fits_better(model: nn.Module, case: str) -> None:
    images, expected = CASES[case]
    fit = measure(model, images)
    assert fit is not None
    assert fit.better == expected
    assert fit.layer == "/0/Conv"
    if expected is None:
        assert fit.given.total < 0.2


def test_what_cannot_be_told(model: nn.Module) -> None:
    assert measure(model, CASES["0..255"][0].head(15)) is None  # few images may be bright, all of them
    folded = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 5))
    assert measure(folded, CASES["0..255"][0]) is None


def test_a_run_warns_of_both_sources(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    wrong = ImageSet.from_array(image_set(pictures(24, 3)[:, ::-1]).images, source="wrong")
    right = ImageSet.from_array(image_set(pictures(24, 4)).images, source="right")
    example = torch.zeros(2, 3, 16, 16)
    for calib, evaluation in ((wrong, right), (right, wrong)):
        caplog.clear()
        quantize(model, example_input=example, calib=calib, eval=evaluation, **FAST)
        (told,) = [record for record in caplog.records if "do not seem to be normalized" in record.message]
        assert told.levelno == logging.WARNING
        assert told.message.startswith("wrong: images do not seem")
        assert told.message.endswith("images that are all of one kind, as of one class, can be off without being wrong")
        assert "with red and blue exchanged; check whether the model takes RGB or BGR, --channel-order" in told.message
    caplog.clear()
    quantize(model, example_input=example, calib=right, **FAST)
    assert "do not seem to be normalized" not in caplog.text


PIXELS_READ = pictures(24, 3)
WRONG = image_set(PIXELS_READ[:, ::-1])


@pytest.mark.parametrize(
    ("calib", "evaluation", "told"),
    [
        (WRONG, None, ["array"]),
        (WRONG, WRONG, ["array"]),
        (WRONG, dataclasses.replace(WRONG, source="copy"), ["array", "copy"]),
        (image_set(PIXELS_READ), image_set(PIXELS_READ, (0.0,) * 3, (1.0,) * 3), ["array"]),
    ],
    ids=["alone", "once", "of another place", "read in another way"],
)
def test_the_same_images_are_told_of_for_each_way_they_are_read(
    model: nn.Module, caplog: pytest.LogCaptureFixture, calib: ImageSet, evaluation: ImageSet | None, told: list[str]
) -> None:
    quantize(model, example_input=torch.zeros(2, 3, 16, 16), calib=calib, eval=evaluation, **FAST)
    warned = [record.message for record in caplog.records if "do not seem to be normalized" in record.message]
    assert [message.partition(":")[0] for message in warned] == told


@pytest.mark.parametrize(
    ("name", "size"), [("efficientnet_lite0_imagenet", 224), ("mobilenetv2_dogs", 160)], ids=["lite0", "dogs"]
)
def test_real_networks(shared_models: Path, shared_data: Path, name: str, size: int) -> None:
    config = Config()
    file, _ = open_model(shared_models / f"{name}.onnx")
    planned = PlannedModel.of(file, plan_options(config, choose(config)), config.file)
    network, spec = import_planned(planned), InputSpec(name="x", shape=(None, 3, size, size))

    def better(**settings: object) -> str | None:
        given = Preprocess(resize=(size, size), **{"mean": (0.5,) * 3, "std": (0.5,) * 3, **settings})  # type: ignore[arg-type]
        images = load_images(shared_data / "imagenet_calib", expected=spec, limit=32, preprocess=given)
        fit = measure_fit(network, planned.plan, planned.prepared.statistics, images)
        assert fit is not None
        return fit.better

    assert better() is None
    assert better(channel_order="BGR") == "with red and blue exchanged"
    assert better(mean=MEAN, std=STD)
    assert better(mean=(0.0,) * 3, std=(1.0,) * 3) == "with mean 0.5 and std 0.5"
    assert better(mean=(0.0,) * 3, std=(1.0,) * 3, pixel_range="0..255") == "with mean 0.5 and std 0.5"
