"""Powers of two as units: what is measured in them neither overflows float32 when squared nor underflows.

Dividing by a power of two is exact, so that a search or a loss in such units is the same for a tensor and for the same
tensor times 2^k.
"""

import math

# Largest magnitudes of tensors that need no unit: with these the method's rates and weights were chosen.
SMALLEST_ORDINARY, LARGEST_ORDINARY = 2.0**-10, 2.0**32


def power_of_two(size: float) -> float:
    """The largest power of two up to ``size``; 1 if that is 0 or not finite."""
    return 2.0 ** (math.frexp(size)[1] - 1) if 0.0 < size < math.inf else 1.0


def unit_of(size: float, smallest: float = SMALLEST_ORDINARY, largest: float = LARGEST_ORDINARY) -> float:
    """The unit for numbers of up to ``size``, a power of two.

    It is 1 for ordinary sizes, from ``smallest`` to ``largest``.
    """
    return 1.0 if smallest <= size <= largest else power_of_two(size)
