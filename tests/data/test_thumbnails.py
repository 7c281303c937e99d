"""Small pictures of images: what is read for the model, in a form that pages can hold."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pdq_export.data import ImageSet, InputSet, load_images
from pdq_export.data.preprocess import Preprocess
from pdq_export.data.thumbnails import thumbnails

RNG = np.random.default_rng(0)
ONE = np.ones(1, np.float32)


def decoded(uri: str) -> NDArray[Any]:
    kind, _, content = uri.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_ones_are_exact(layout: str, channels: int) -> None:
    pixels = RNG.integers(0, 256, (5, 20, 30, channels), np.uint8)
    stored = pixels if layout == "NHWC" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    data = ImageSet(pixels=stored, mean=ONE, std=ONE, source="s", layout=layout)
    found = thumbnails(data, [3, 1])
    assert list(found) == [3, 1]
    for number, uri in found.items():
        np.testing.assert_array_equal(decoded(uri).reshape(20, 30, channels), pixels[number])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_colours_are_those_of_the_file_whatever_the_model_takes(tmp_path: Path, layout: str) -> None:
    pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3, channel_order="BGR", layout=layout)
    (uri,) = thumbnails(load_images(tmp_path, preprocess=read), [0]).values()
    np.testing.assert_array_equal(decoded(uri), pixels)


def test_large_ones_become_small() -> None:
    pixels = RNG.integers(0, 256, (1, 3, 300, 600), np.uint8)
    (uri,) = thumbnails(ImageSet(pixels=pixels, mean=ONE, std=ONE, source="s"), [0]).values()
    assert decoded(uri).shape == (64, 128, 3)
    assert len(uri) < 20_000


def test_floats_are_spread() -> None:
    pixels = RNG.standard_normal((2, 1, 8, 8), dtype=np.float32)
    pixels[1] = 3.5
    found = [decoded(uri) for uri in thumbnails(ImageSet(pixels=pixels, source="s"), [0, 1]).values()]
    assert (found[0].min(), found[0].max()) == (0, 255)
    order = pixels[0, 0].reshape(-1).argsort()
    assert (np.diff(found[0].reshape(-1)[order].astype(int)) >= 0).all()
    assert (found[1] == 0).all()


def test_what_is_no_picture() -> None:
    five = ImageSet(pixels=RNG.standard_normal((2, 5, 8, 8), dtype=np.float32), source="s")
    assert thumbnails(five, [0]) == {}
    arrays = InputSet(names=("x",), arrays=(np.zeros((2, 6), np.float32),), source="s")
    assert thumbnails(arrays, [0]) == {}
