"""Single samples far out of the range of all others, and data that only look like having some."""

import numpy as np
import pytest

from pdq_export.data import ImageSet, InputSet, find_outliers

RNG = np.random.default_rng(0)


def images(x: np.ndarray) -> ImageSet:
    return ImageSet(pixels=x.astype(np.float32), source="array")


def ordinary(count: int = 64) -> np.ndarray:
    return RNG.normal(size=(count, 3, 6, 6))


def test_one_pixel_of_another_order_of_magnitude() -> None:
    x = ordinary()
    x[3, 0, 0, 0], x[40, 1, 5, 5] = 3e4, -1e5
    assert find_outliers(images(x)) == [3, 40]


def test_an_image_in_other_units() -> None:
    x = ordinary(8)
    x[5] *= 255
    assert find_outliers(images(x)) == [5]


@pytest.mark.parametrize("shape", [(200, 40), (200, 3, 8, 8)])
def test_heavy_tails_are_left_alone(shape: tuple[int, ...]) -> None:
    for seed in range(50):
        generator = np.random.default_rng(seed)
        x = generator.lognormal(0, 1, size=shape).astype(np.float32)  # up to 50 times its median
        assert find_outliers(InputSet(names=("x",), arrays=(x,), source="arrays")) == []


@pytest.mark.parametrize(
    "x",
    [
        ordinary(7) * np.array([1, 1, 1, 1, 1, 1, 1e6])[:, None, None, None],  # too few to tell
        ordinary() * np.where(np.arange(64) % 4 == 0, 1e4, 1.0)[:, None, None, None],  # a population
        ordinary() * np.geomspace(1, 1e6, 64)[:, None, None, None],  # no gap
        ordinary() * (np.arange(64) > 60)[:, None, None, None],  # nearly all black
        np.zeros((64, 3, 6, 6)),
    ],
)
def test_what_is_no_outlier(x: np.ndarray) -> None:
    assert find_outliers(images(x)) == []


def test_bytes_have_no_outliers() -> None:
    pixels = np.zeros((64, 3, 6, 6), np.uint8)
    pixels[:, 0, 0, 0] = 1
    pixels[3] = 255
    mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert find_outliers(ImageSet(pixels=pixels, mean=mean, std=std, source="array")) == []


def test_any_input_of_several() -> None:
    x, y = (ordinary().astype(np.float32) for _ in range(2))
    x[7, 0, 0, 0] = y[2, 1, 1, 1] = 1e4
    samples = InputSet(names=("x", "y"), arrays=(x, y), labels=np.arange(64), source="arrays")
    assert find_outliers(samples) == [2, 7]
    rest = samples.take([n for n in range(64) if n not in (2, 7)])
    assert len(rest) == 62
    assert rest.labels is not None
    assert rest.labels[:3].tolist() == [0, 1, 3]
    assert find_outliers(rest) == []
