"""Normalization, and what arrays have to fulfil."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.data import ImageSet, InputSpec
from pdq_export.errors import DataError

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((6, 3, 4, 5)).astype(np.float32)
BYTES = RNG.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
SPEC = InputSpec(name="x", shape=(None, 3, 4, 5))


def test_float_images_stay_as_they_are() -> None:
    images = ImageSet.from_array(FLOATS, expected=SPEC)
    assert np.array_equal(images.array(), FLOATS)
    assert np.array_equal(images.images[2], FLOATS[2])
    assert len(images) == 6


def test_uint8_images_are_normalized_by_channel() -> None:
    images = ImageSet.from_array(BYTES, mean=MEAN, std=STD, labels=np.arange(6), expected=SPEC)
    expected = (BYTES / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert images.pixels.dtype == np.uint8
    assert images.array().dtype == np.float32
    np.testing.assert_allclose(images.array(), expected, rtol=1e-5, atol=1e-6)
    assert str(images) == "array: 6 images 3 x 4 x 5 (uint8, labelled)"


@given(size=st.integers(1, 9), limit=st.integers(1, 9))
def test_batches_and_heads_are_parts_of_the_whole(size: int, limit: int) -> None:
    images = ImageSet.from_array(BYTES, mean=MEAN, std=STD, labels=np.arange(6))
    batches = list(images.batches(size))
    assert all(len(batch) == size for batch in batches[:-1])
    assert np.array_equal(np.concatenate(batches), images.array())
    head = images.head(limit)
    assert np.array_equal(head.array(), images.array(limit))
    assert head.labels is not None
    assert len(head) == len(head.labels) == min(limit, 6)


def test_limit_of_an_array_takes_its_first_images_and_labels() -> None:
    images = ImageSet.from_array(FLOATS, labels=np.arange(6), limit=2)
    assert len(images) == 2
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]


def test_normalizing_leaves_the_pixels_alone() -> None:
    before = BYTES.copy()
    ImageSet.from_array(BYTES, mean=MEAN, std=STD).array()
    assert np.array_equal(BYTES, before)


def with_value(value: float) -> np.ndarray:
    images = FLOATS.copy()
    images[4, 1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (FLOATS[0], {}, r"shape 3 x 4 x 5; expected 4 axes"),
        (FLOATS[:0], {}, r"0 x 3 x 4 x 5: empty; expected at least one image"),
        (FLOATS.astype(np.float64), {}, r"images are float64; expected float32, or uint8 .*astype"),
        (FLOATS.astype(np.float16), {}, r"images are float16; expected float32"),
        (FLOATS[:, :1], {"expected": SPEC}, r"images are 1 x 4 x 5 .* input 'x' \(\? x 3 x 4 x 5, float32\)"),
        (FLOATS.transpose(0, 2, 3, 1), {"expected": SPEC}, r"N x H x W x C; store images.transpose\(0, 3, 1, 2\)"),
        (with_value(np.nan), {}, r"image 4 holds NaN or Inf"),
        (with_value(-np.inf), {}, r"image 4 holds NaN or Inf"),
        (BYTES, {}, r"uint8 images without mean and std; store them"),
        (BYTES, {"mean": MEAN}, r"uint8 images without std;"),
        (BYTES, {"mean": MEAN, "std": [1.0]}, r"std of shape \[1\], float64; expected 3 numbers"),
        (BYTES, {"mean": 0.5, "std": STD}, r"mean of shape \[\], float64; expected 3 numbers"),
        (BYTES, {"mean": ["a"] * 3, "std": STD}, r"mean of shape \[3\], <U1; expected 3 numbers"),
        (BYTES, {"mean": MEAN, "std": [0.2, 0, 0.2]}, r"std = .*; expected positive values"),
        (BYTES, {"mean": MEAN, "std": [np.nan] * 3}, r"std = \[nan, nan, nan\]; expected values for pixels"),
        (BYTES, {"mean": [123.7, 116.3, 103.5], "std": STD}, r"mean = \[123.*divide those for 0..255 by 255"),
        (FLOATS, {"labels": np.arange(5)}, r"labels of shape 5 for 6 images"),
        (FLOATS, {"labels": np.arange(6).reshape(6, 1)}, r"labels of shape 6 x 1 for 6 images"),
        (FLOATS, {"labels": np.arange(6.0)}, r"labels are float64; expected integers"),
        (FLOATS, {"labels": np.array([0, 1, 2, -1, 4, 5])}, r"label -1 of image 3; expected class indices from 0"),
    ],
)
def test_what_does_not_fit_is_an_error_that_gives_both(images: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"^array: .*{message}"):
        ImageSet.from_array(images, **options)


@pytest.mark.parametrize(
    "spec", [InputSpec(name="x", shape=(None, 10)), InputSpec(name="x", shape=(1, 3, 4, 5), dtype="float16")]
)
def test_an_input_that_takes_no_images(spec: InputSpec) -> None:
    with pytest.raises(DataError, match="cannot feed the model's input 'x'"):
        ImageSet.from_array(FLOATS, expected=spec)
    with pytest.raises(DataError, match="cannot feed"):
        ImageSet.from_array(FLOATS).check(spec)


def test_raw_pixels_as_floats_are_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ImageSet.from_array(BYTES.astype(np.float32))
    assert "look like raw pixels of 0..255" in caplog.text


def test_mean_and_std_of_float_images_are_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        images = ImageSet.from_array(FLOATS, mean=MEAN, std=STD)
    assert "mean and std are not used" in caplog.text
    assert np.array_equal(images.array(), FLOATS)
