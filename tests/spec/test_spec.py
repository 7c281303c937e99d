"""Bit widths and integer ranges."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.errors import OptionError
from pdq_export.spec import BitWidths, Point, Role


@given(weight=st.integers(2, 8), activation=st.integers(2, 8))
def test_bits_survive_a_round_trip(weight: int, activation: int) -> None:
    assert BitWidths.parse(str(BitWidths(weight, activation))) == BitWidths(weight, activation)


@pytest.mark.parametrize("text", ["", 4, "4", "four", "4/", "/4", "4/4/4", "4,4", "-4/4", "4.0/4", "٤/٤"])
def test_bits_that_are_not_bits(text: Any) -> None:
    with pytest.raises(OptionError, match="expected W/A"):
        BitWidths.parse(text)


@pytest.mark.parametrize("text", ["9/1", "1/4", "4/9", "0/0", "16/16"])
def test_bits_out_of_range(text: str) -> None:
    with pytest.raises(OptionError, match="expected 2 to 8"):
        BitWidths.parse(text)


def test_integer_ranges() -> None:
    asymmetric = Point(tensor="t", role=Role.ACTIVATION, bits=2)
    symmetric = Point(tensor="w", role=Role.WEIGHT, bits=8, axis=0, symmetric=True)
    assert (asymmetric.qmin, asymmetric.qmax) == (0, 3)
    assert (symmetric.qmin, symmetric.qmax) == (-127, 127)


def test_other_bits_and_what_they_mean_for_the_signs() -> None:
    weight = Point(tensor="w", role=Role.WEIGHT, bits=4, axis=0)
    assert weight.with_bits(3) == Point(tensor="w", role=Role.WEIGHT, bits=3, axis=0)
    assert type(weight.with_bits(np.int64(3)).bits) is int
    assert weight.with_bits(8).symmetric  # what kernels want
    assert weight.with_bits(8).with_bits(4).symmetric  # a symmetric weight stays one
    assert weight.with_bits(8).with_bits(4, symmetric=False) == weight
    activation = Point(tensor="a", role=Role.ACTIVATION, bits=4, absorbed="relu")
    assert activation.with_bits(8, symmetric=True) == Point(
        tensor="a", role=Role.ACTIVATION, bits=8, absorbed="relu"
    )  # that is for weights to choose
    carrier = Point(tensor="c", role=Role.CARRIER, bits=8)
    assert carrier.with_bits(8) == carrier


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, True, "4", None])
def test_bits_that_no_tensor_has(bits: Any) -> None:
    with pytest.raises(OptionError, match=r"tensor 'w': bits are .*; expected 2 to 8"):
        Point(tensor="w", role=Role.WEIGHT, bits=4, axis=0).with_bits(bits)


def test_a_carrier_has_eight_bits() -> None:
    with pytest.raises(OptionError, match="tensor 'c': bits are 4; expected 8, as it is a carrier"):
        Point(tensor="c", role=Role.CARRIER, bits=8).with_bits(4)
