"""Rendered text images: seeded, apart by split, as PP-OCR's networks read them. Pillow's own font is enough."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from benchmarks.text_images import SPLITS, Font, TextRenderer, prepare_line, prepare_page
from pdq_export.errors import DataError


def built_in(number: int, size: float) -> Font:
    return ImageFont.load_default(size)


def renderer(split: str = "calibration", seed: int = 0) -> TextRenderer:
    return TextRenderer(split, seed=seed, load_font=built_in)


def test_lines() -> None:
    images, labels = renderer().lines(20)
    assert (images.shape, images.dtype) == ((20, 3, 48, 192), np.float32)
    assert labels.sum() == 10
    assert np.abs(images).max() <= 1
    assert images.std((1, 2, 3)).min() > 0.1, "an image without text"
    again, same = renderer().lines(20)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, same)
    others, _ = renderer(seed=1).lines(20)
    assert not (images == others).all((1, 2, 3)).any()


def test_half_of_the_lines_are_turned() -> None:
    """The same pictures, all upright: an image is one of them or, where the label says so, one of them turned."""

    class Upright(TextRenderer):
        def _line(self, text: str) -> Image.Image:
            pictures.append(super()._line(text))
            return pictures[-1]

    pictures: list[Image.Image] = []
    images, labels = Upright("calibration", load_font=built_in).lines(12)
    for image, label, picture in zip(images, labels, pictures, strict=True):
        np.testing.assert_array_equal(image, prepare_line(picture.rotate(180) if label else picture))
        assert (image != prepare_line(picture if label else picture.rotate(180))).any()


def test_pages() -> None:
    pages = renderer().pages(3, 96, 160)
    assert (pages.shape, pages.dtype) == ((3, 3, 96, 160), np.float32)
    np.testing.assert_array_equal(pages, renderer().pages(3, 96, 160))
    assert not (pages[0] == pages[1]).all()


def test_no_two_splits_share_a_text() -> None:
    texts = [{drawn.text(1, 2) for _ in range(300)} for drawn in map(renderer, SPLITS)]
    assert len(set.union(*texts)) == sum(len(found) for found in texts)
    files = [file for package in SPLITS.values() for file in package.files]
    assert len(set(files)) == len(files)


def test_preprocessing_of_a_short_and_of_a_long_line() -> None:
    short = prepare_line(Image.new("RGB", (60, 30), (255, 0, 51)))
    np.testing.assert_allclose(short[:, :, :96], np.broadcast_to([[[1.0]], [[-1.0]], [[-0.6]]], (3, 48, 96)), atol=1e-6)
    assert (short[:, :, 96:] == 0).all()
    assert (prepare_line(Image.new("RGB", (900, 30), (255, 255, 255))) == 1).all()


def test_preprocessing_of_a_page() -> None:
    page = prepare_page(Image.new("RGB", (32, 64), (255, 0, 51)))
    assert page.shape == (3, 64, 32)
    np.testing.assert_allclose(page[:, 0, 0], [0.515 / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-5)


@pytest.mark.parametrize("split", SPLITS)
def test_missing_fonts_are_named_with_their_package(split: str, tmp_path: Path) -> None:
    package = SPLITS[split]
    (tmp_path / "deeper").mkdir()
    for file in package.files[:-1]:
        (tmp_path / "deeper" / file).touch()
    with pytest.raises(DataError, match=rf"has no {package.files[-1]}; .* apt-get install {package.name}$"):
        package.find(tmp_path)
    (tmp_path / package.files[-1]).touch()
    assert [path.name for path in package.find(tmp_path)] == list(package.files)
