"""How often numbers lie where, on the axis of what they are rounded to: counts that are small enough for a report."""

import dataclasses
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_INNER, _OUTER = 64, 16  # bins of the quantizer's range, and on either side of it
BINS = _INNER + 2 * _OUTER


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """``counts`` of bins of the same ``width``, the first of which begins at ``start``.

    What lies beyond the outermost counts to them; NaN counts nowhere.
    """

    start: float
    width: float
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bins:
    """Bins over what a quantizer holds, and a quarter as many again on either side."""

    start: float
    width: float

    @classmethod
    def around(cls, low: float, high: float, levels: int) -> Self:
        """``levels`` numbers from ``low`` to ``high``; the range of each reaches half a step to both sides."""
        step = (high - low) / max(levels - 1, 1)
        width = levels * step / _INNER
        return cls(start=low - step / 2 - _OUTER * width, width=width)

    def count(self, x: NDArray[Any]) -> NDArray[np.int64]:
        """How many of the numbers lie in each bin: int64 [BINS]."""
        with np.errstate(invalid="ignore"):
            places = np.clip((x.reshape(-1).astype(np.float64) - self.start) / self.width, 0, BINS - 1)
        return np.bincount(places[~np.isnan(places)].astype(np.int64), minlength=BINS)

    def histogram(self, counts: NDArray[np.int64]) -> Histogram:
        """What was counted, in plain numbers."""
        return Histogram(start=self.start, width=self.width, counts=tuple(counts.tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightHistogram:
    """Of a layer's weight, on the axis of its integers, ``qmin`` to ``qmax``, whatever the scale of each channel.

    ``integers``: those of the file. ``floats``: the FP32 weight as x / scale + zero_point; None where it is not known.
    ``elements``: how many numbers the weight has; ``bits`` hold its integers.
    """

    layer: str
    bits: int
    qmin: int
    qmax: int
    elements: int
    integers: Histogram
    floats: Histogram | None = None

    @classmethod
    def of(
        cls,
        layer: str,
        integers: NDArray[Any],
        qmin: int,
        qmax: int,
        *,
        bits: int | None = None,
        floats: NDArray[Any] | None = None,
    ) -> Self:
        """``floats``: in units of the integers, not rounded yet. ``bits``: by default those of qmin to qmax."""
        bins = Bins.around(qmin, qmax, qmax - qmin + 1)
        return cls(
            layer=layer,
            bits=bits or max((qmax - qmin).bit_length(), 1),
            qmin=qmin,
            qmax=qmax,
            elements=integers.size,
            integers=_of_integers(integers, qmin, qmax),
            floats=None if floats is None else bins.histogram(bins.count(floats)),
        )


def _of_integers(integers: NDArray[Any], qmin: int, qmax: int) -> Histogram:
    """A bin for each integer, or for several where there are many."""
    together = -(-(qmax - qmin + 1) // _INNER)
    places = (np.clip(integers.reshape(-1), qmin, qmax).astype(np.int64) - qmin) // together
    counts = np.bincount(places, minlength=-(-(qmax - qmin + 1) // together))
    return Histogram(start=qmin - 0.5, width=float(together), counts=tuple(counts.tolist()))
