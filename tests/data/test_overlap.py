"""Images that calibration has seen are found again, however they are stored."""

import numpy as np

from pdq_export.data import ImageSet, InputSet, InputSpec, all_equal, count_shared

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), np.uint8)


def stored(pixels: np.ndarray, mean: float = 0.5) -> ImageSet:
    return ImageSet.from_array(pixels, mean=[mean] * 3, std=[0.5] * 3)


def test_images_are_counted_by_their_pixels() -> None:
    assert count_shared(stored(PIXELS[:4]), stored(PIXELS[2:], mean=0.4)) == 2
    assert count_shared(stored(PIXELS[:3]), stored(PIXELS[3:])) == 0
    assert count_shared(stored(PIXELS), stored(PIXELS[::-1])) == 6


def test_bytes_and_floats_are_compared_as_the_model_sees_them() -> None:
    floats = ImageSet.from_array(stored(PIXELS[3:]).images)
    assert count_shared(stored(PIXELS[:4]), floats) == 1
    assert count_shared(stored(PIXELS[:4], mean=0.4), floats) == 0


def test_rows_of_several_inputs_count_as_one() -> None:
    expected = [InputSpec(name=name, shape=(None, 2)) for name in ("a", "b")]
    a, b = np.arange(8, dtype=np.float32).reshape(4, 2), np.ones((4, 2), np.float32)
    calibration = InputSet.from_arrays({"a": a, "b": b}, expected=expected)
    b = b.copy()
    b[0] = 2
    assert count_shared(calibration, InputSet.from_arrays({"a": a, "b": b}, expected=expected)) == 3


def test_a_set_of_one_image_again_and_again() -> None:
    assert all_equal(stored(np.repeat(PIXELS[:1], 3, axis=0)))
    assert not all_equal(stored(PIXELS))
    assert not all_equal(stored(PIXELS[:1]))
