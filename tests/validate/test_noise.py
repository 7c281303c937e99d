"""Random inputs: sizes, and numbers that fit each type."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.errors import ModelError, OptionError
from pdq_export.validate import Value
from pdq_export.validate.noise import choose_sizes, random_batch


def value(*shape: int | None, kind: str = "tensor(float)", name: str = "x") -> Value:
    return Value(name=name, kind=kind, shape=shape or None)


@pytest.mark.parametrize(
    ("shape", "given_sizes", "expected", "chosen"),
    [
        ((None, 3, 8, 9), None, (None, 3, 8, 9), False),
        ((2, 3, 8, 9), None, (2, 3, 8, 9), False),
        ((None, 3, None, None), None, (None, 3, 224, 224), True),
        ((None, None, 48, None), None, (None, 3, 48, 224), True),
        ((1, None, None, 3), None, (1, 224, 224, 3), True),
        ((None, 7), None, (None, 7), False),
        ((None, None), (1, 5), (None, 5), False),
        ((None, None), (4, 5), (4, 5), False),
        ((1, None), (1, 5), (1, 5), False),
        ((), None, (), False),
        ((), (3, 4), (3, 4), False),
    ],
)
def test_sizes(
    shape: tuple[int | None, ...],
    given_sizes: tuple[int, ...] | None,
    expected: tuple[int | None, ...],
    chosen: bool,
) -> None:
    (one,) = choose_sizes([value(*shape)], {} if given_sizes is None else {"x": given_sizes})
    assert (one.sizes, one.chosen) == (expected, chosen)
    assert one.shape(6) == tuple(6 if size is None else size for size in expected)


@pytest.mark.parametrize("sizes", [(1, 3, 8), (1, 4, 8, 8), (2, 3, 8, 8)])
def test_sizes_that_do_not_fit(sizes: tuple[int, ...]) -> None:
    with pytest.raises(
        OptionError, match=r"--shape x=[0-9x]+: does not fit input 'x' \(tensor\(float\) 1 x 3 x \? x 8"
    ):
        choose_sizes([value(1, 3, None, 8)], {"x": sizes})


@pytest.mark.parametrize("sizes", [(1, 0), (1, -1), (1, 2.0), (1, None), "1x"])
def test_sizes_that_are_none(sizes: Any) -> None:
    with pytest.raises(OptionError, match=r"--shape x=.*: expected whole numbers, 1 or more"):
        choose_sizes([value(None, None)], {"x": sizes})


def test_no_such_input() -> None:
    with pytest.raises(OptionError, match=r"--shape z=\.\.\.: no input of that name; expected one of a, b"):
        choose_sizes([value(1, name="a"), value(1, name="b")], {"z": (1,)})


def test_what_is_no_image_has_no_usual_size_and_the_remedy_works() -> None:
    with pytest.raises(ModelError, match=r"give it: --shape x=1x1x5,"):
        choose_sizes([value(None, None, 5)], {})
    assert choose_sizes([value(None, None, 5)], {"x": (1, 1, 5)})[0].sizes == (None, 1, 5)


KINDS = ["float16", "float", "double", "bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]


@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(0, 9))
def test_numbers_of_every_type(kind: str, batch: int, seed: int) -> None:
    inputs = choose_sizes([value(None, 40, kind=f"tensor({kind})"), value(name="s")], {})
    drawn, scalar = random_batch(inputs, batch, seed=seed)
    assert (drawn.shape, drawn.dtype) == ((batch, 40), inputs[0].value.dtype)
    assert scalar.shape == ()
    assert scalar.dtype == np.float32
    assert len(np.unique(drawn)) > 1
    if drawn.dtype.kind in "iu" and drawn.dtype.itemsize > 1:
        assert set(np.unique(drawn)) == {0, 1}
    assert np.array_equal(drawn, random_batch(inputs, batch, seed=seed)[0])
