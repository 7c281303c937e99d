import math

import pytest

from pdq_export.numerics.units import LARGEST_ORDINARY, SMALLEST_ORDINARY, power_of_two, unit_of


@pytest.mark.parametrize("size", [1e-45, 1e-38, 0.3, 1.0, 1.5, 7e12, 3e38])
def test_the_power_of_two_below(size: float) -> None:
    unit = power_of_two(size)
    assert math.frexp(unit)[0] == 0.5
    assert unit <= size < 2 * unit


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_what_has_no_size_has_the_unit_1(size: float) -> None:
    assert power_of_two(size) == unit_of(size) == 1.0


def test_ordinary_sizes_have_the_unit_1() -> None:
    assert {unit_of(size) for size in (SMALLEST_ORDINARY, 0.7, 300.0, LARGEST_ORDINARY)} == {1.0}
    assert unit_of(3e-8) == 2.0**-25
