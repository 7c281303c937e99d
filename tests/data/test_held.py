"""Images that are held back from calibration: enough, and none that anything else sees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.data import ImageSet
from pdq_export.data.overlap import image_digests
from pdq_export.data.samples import split_held
from pdq_export.errors import DataError


def image_set(numbers: list[int], source: str) -> ImageSet:
    pixels = np.zeros((len(numbers), 3, 4, 4), np.uint8)
    pixels[:] = np.asarray(numbers, np.uint8).reshape(-1, 1, 1, 1)
    labels = np.asarray(numbers)
    return ImageSet.from_array(pixels, labels=labels, mean=[0.5] * 3, std=[0.5] * 3, source=source)


@given(
    given_images=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    judged=st.lists(st.integers(0, 30), min_size=1, max_size=10),
    limit=st.integers(1, 50),
)
def test_nothing_is_seen_twice(given_images: list[int], judged: list[int], limit: int) -> None:
    whole, evaluation = image_set(given_images, "calib"), image_set(judged, "eval")
    try:
        calibration, held = split_held(whole, evaluation, limit)
    except DataError:
        count = min(limit, len(whole) - -(-len(whole) // 4))
        assert set(given_images[count:]) <= set(given_images[:count]) | set(judged) or count == 0
        return
    seen, kept, other = map(set, image_digests(calibration, held, evaluation))
    assert not kept & (seen | other)
    assert len(calibration) == min(limit, len(whole) - -(-len(whole) // 4))
    assert calibration.labels is not None
    assert held.labels is not None
    assert calibration.labels.tolist() == given_images[: len(calibration)]
    assert set(held.labels.tolist()) <= set(given_images[len(calibration) :])


def test_a_quarter_or_all_that_calibration_does_not_take() -> None:
    whole = image_set(list(range(40)), "calib")
    assert [len(part) for part in split_held(whole, None, 100)] == [30, 10]
    assert [len(part) for part in split_held(whole, None, 8)] == [8, 32]
    with pytest.raises(DataError, match="calib: 1 images, of which none can be held back"):
        split_held(image_set([1], "calib"), None, 8)
