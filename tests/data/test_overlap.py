"""Images that calibration has seen are found again, however they are stored."""

import numpy as np
import pytest

import pdq_export.data.overlap
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


def test_only_images_alike_in_a_part_are_compared_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = pdq_export.data.overlap._digest

    def digest(*arrays: np.ndarray) -> bytes:
        seen.append(sum(array.size for array in arrays))
        return real(*arrays)

    monkeypatch.setattr(pdq_export.data.overlap, "_digest", digest)
    changed = PIXELS.copy()
    changed[:, 0, 0, 0] ^= 1  # not in the part that is compared first
    assert count_shared(stored(PIXELS[:4]), stored(changed)) == 0
    assert seen.count(PIXELS[0].size) == 4 + 4
    seen.clear()
    assert count_shared(stored(PIXELS[:4]), stored(np.concatenate([PIXELS[3:], 255 - PIXELS]))) == 1
    assert seen.count(PIXELS[0].size) == 4 + 1


def test_a_set_of_one_image_again_and_again() -> None:
    assert all_equal(stored(np.repeat(PIXELS[:1], 3, axis=0)))
    assert not all_equal(stored(PIXELS))
    assert not all_equal(stored(PIXELS[:1]))
