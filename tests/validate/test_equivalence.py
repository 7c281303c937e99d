"""What counts as rounding, and what does not."""

import numpy as np
import pytest

from pdq_export.errors import percent
from pdq_export.validate.equivalence import FLOAT16, FLOAT32, explain, find_differences, join

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(2, 5, 4)).astype(np.float32)


def difference(expected: np.ndarray, found: np.ndarray, precision=FLOAT32):
    return next(iter(find_differences([{"y": expected}], [{"y": found}], precision)), None)


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_rounding_is_none_whatever_the_size(size: float) -> None:
    y = Y * np.float32(size)
    assert difference(y, y * np.float32(1 + 1e-5)) is None
    found = difference(y, y * np.float32(1.01))
    assert found is not None
    assert found.error == pytest.approx(0.01, rel=1e-3)


def test_a_single_wrong_element_beside_large_ones_counts() -> None:
    boxes_and_scores = np.concatenate([np.full((1, 4, 50), 300.0), np.full((1, 1, 50), 0.5)], axis=1)
    wrong = boxes_and_scores.copy()
    wrong[0, 4, 7] = 0.4
    assert difference(boxes_and_scores, wrong) is not None


def test_float16_has_a_tolerance_of_its_own() -> None:
    assert difference(Y, Y.astype(np.float16), FLOAT16) is None
    assert difference(Y, Y * np.float32(1.002)) is not None
    assert difference(Y, Y * np.float32(1.002), FLOAT16) is None
    assert difference(Y, Y * np.float32(1.1), FLOAT16) is not None
    neighbours = Y.astype(np.float16), np.nextafter(Y.astype(np.float16), np.float16(9))
    assert difference(*neighbours) is None


def test_shapes_integers_and_nan() -> None:
    found = difference(Y, Y[:1])
    assert found is not None
    assert found.words == "it has shape [1, 5, 4], where the file's is [2, 5, 4]"
    assert difference(np.array([1, 2]), np.array([1, 2])) is None
    assert difference(np.array([1, 2]), np.array([1, 3])) is not None
    holes = np.where(Y > 1, np.nan, Y)
    assert difference(holes, holes) is None
    found = difference(Y, holes)
    assert found is not None
    assert found.error == np.inf


def test_every_difference_is_told_the_largest_first() -> None:
    expected, found = {"a": Y, "b": Y, "c": Y}, {"a": Y * np.float32(1.1), "b": Y, "c": -Y}
    assert [seen.output for seen in find_differences([expected], [found], FLOAT32)] == ["c", "a"]


def threshold(inputs):
    """Ones where an input is beyond a half, which rounding decides for many of them."""
    return {"y": (inputs[0] > 0.5).astype(np.float32)}


def linear(inputs):
    return {"y": inputs[0] * 2}


def test_a_difference_behind_a_threshold_is_explained_by_rounding() -> None:
    x = np.full((2, 100), 0.5, np.float32)
    expected = threshold((x,))
    found = {"y": threshold((np.nextafter(x, RNG.choice([-1, 1], x.shape).astype(np.float32)),))["y"]}
    (seen,) = find_differences([expected], [found], FLOAT32)
    assert explain(seen, threshold, [(x,)], [expected], FLOAT32) is None


def test_a_difference_that_rounding_cannot_make_is_certain() -> None:
    x = RNG.normal(size=(2, 100)).astype(np.float32)
    for run, factor in ((linear, 1.01), (threshold, 1.3)):
        expected, found = run((x,)), run((x * np.float32(factor),))
        (seen,) = find_differences([expected], [found], FLOAT32)
        judged = explain(seen, run, [(x,)], [expected], FLOAT32)
        assert judged is not None
        assert judged.certain


def test_batches_are_joined_where_the_whole_is_longer() -> None:
    whole = {"y": Y, "z": Y.transpose(1, 0, 2), "w": Y[0]}
    chunks = [{"y": Y[i : i + 1], "z": Y[i : i + 1].transpose(1, 0, 2), "w": Y[0]} for i in range(2)]
    for name, value in join(chunks, whole).items():
        np.testing.assert_array_equal(value, whole[name])


@pytest.mark.parametrize(("share", "text"), [(1.234, "120 %"), (0.0456, "4.6 %"), (1e-5, "0.001 %"), (26.0, "2600 %")])
def test_shares_are_told_without_exponents(share: float, text: str) -> None:
    assert percent(share) == text
