"""Bit widths and integer ranges."""

from typing import Any

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
