"""Scale search: the scale and zero_point that minimise mean |x - x_hat|^2.4 (BRECQ's and PD-Quant's published code)."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pdq_export.numerics.affine import dequantize_affine, quantize_affine
from pdq_export.numerics.units import unit_of

NORM = 2.4
FRACTIONS = 100
_BINS = 8192
# histc counts in float32, which is exact up to here.
_LARGEST_COUNT = 2**24
# Enumerating every zero_point costs 2^bits candidates a fraction; from here on the range's own zero_point is as good.
_MAX_ENUMERATED_BITS = 4
_COARSE = 4
_QUICK = 5
_SHIFTS = (-1, 0, 1)  # of a zero_point
# A channel this much smaller than the layer's largest is a constant to every later quantizer; the floor keeps its
# INT32 bias in range. A weight that is zero throughout gets the least scale: its bias asks for the one it needs.
_SCALE_FLOOR = 2.0**-16
_SCALE_OF_ZEROS = 2.0**-100
# Scales below are no normal numbers, of which processors and runtimes may make zeros.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class QParams:
    """``scale`` (float32) and ``zero_point`` (integers kept in float32): shape [] per tensor or [C] per channel."""

    scale: Tensor
    zero_point: Tensor

    def times(self, unit: float) -> "QParams":
        """The qparams of the same tensor times ``unit``, a power of two.

        No scale is less than the least normal number of float32.
        """
        return QParams(scale=(self.scale * unit).clamp(min=_SMALLEST_SCALE), zero_point=self.zero_point)


def choose_weight_qparams(weight: Tensor, qmin: int, qmax: int, *, quick: bool = False) -> QParams:
    """Per-channel qparams of a weight given as [C, K] (output channels first, the rest flattened).

    Unsigned, qmin = 0: every fraction k/100 of the channel's range and, up to 4 bits, every zero_point, coarse to
    fine. Signed: zero_point 0. Small and large weights are searched in units of their own size. ``quick``: every
    fifth fraction, and zero_points near the range's own: a few hundredths more error in a fifth of the time.
    """
    unit = unit_of(float(weight.abs().max()))
    return _search_weight(weight / unit, qmin, qmax, quick).times(unit)


def _search_weight(weight: Tensor, qmin: int, qmax: int, quick: bool) -> QParams:
    stride = _QUICK if quick else 1
    if qmin < 0:
        search = _Search(weight, qmin, qmax)
        limit = weight.abs().amax(1)
        for step in range(stride, FRACTIONS + 1, stride):
            search.offer(limit * (step / FRACTIONS) / qmax, torch.zeros_like(limit))
        return search.result()
    levels = qmax
    search = _Search(weight, qmin, levels)
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    if quick:
        shifts = _SHIFTS if levels < 2 ** (_MAX_ENUMERATED_BITS + 1) - 1 else (0,)
        for step in range(stride, FRACTIONS + 1, stride):
            search.offer_range(low * (step / FRACTIONS), high * (step / FRACTIONS), shifts)
        return search.result()
    if levels >= 2 ** (_MAX_ENUMERATED_BITS + 1) - 1:
        for step in range(1, FRACTIONS + 1):
            search.offer_range(low * (step / FRACTIONS), high * (step / FRACTIONS))
        return search.result()
    span = high - low
    for step in range(_COARSE, FRACTIONS + 1, _COARSE):
        for zero_point in range(levels + 1):
            search.offer(span * (step / FRACTIONS) / levels, torch.full_like(span, zero_point))
    coarse = search.result()
    for offset in range(-_COARSE + 1, _COARSE):
        scale = coarse.scale + offset * span / (FRACTIONS * levels)
        for shift in _SHIFTS:
            search.offer(scale.clamp(min=0), (coarse.zero_point + shift).clamp(0, levels))
    return search.result()


def choose_activation_qparams(x: Tensor | Iterable[Tensor], bits: int, *, symmetric: bool = False) -> QParams:
    """Per-tensor qparams of an activation of any shape, q in [0, 2^bits - 1].

    ``x`` may come in parts, which are gone through twice. ``symmetric``: q in [-2^(bits - 1), 2^(bits - 1) - 1] with
    zero_point 0, one-sided data too. Otherwise one-sided data get zero_point 0 (or qmax). Errors are summed over a
    histogram of 8,192 bins, so that the search costs the same for any number of elements. Small and
    large activations are searched in units of their own size.
    """
    return Histogram.of(x).choose_qparams(bits, symmetric=symmetric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often an activation's elements fall into each of 8,192 bins from ``low`` to ``high``.

    0 is between these. ``counts`` [bins], in float64. The search of any bits needs no more.
    """

    counts: Tensor
    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor | Iterable[Tensor]) -> "Histogram":
        """Of an activation of any shape, which may come in parts; these are gone through twice."""
        parts = [x] if isinstance(x, Tensor) else x
        bounds = torch.stack([torch.stack(torch.aminmax(part)) for part in parts])
        low, high = min(float(bounds[:, 0].amin()), 0.0), max(float(bounds[:, 1].amax()), 0.0)
        if high == low:
            return cls(counts=torch.zeros(_BINS, dtype=torch.float64, device=bounds.device), low=low, high=high)
        return cls(counts=_histogram(parts, low, high, unit_of(max(-low, high))), low=low, high=high)

    def choose_qparams(self, bits: int, *, symmetric: bool = False, quick: bool = False) -> QParams:
        """As `choose_activation_qparams`; ``quick`` as in `choose_weight_qparams`."""
        levels, device = 2**bits - 1, self.counts.device
        if self.high == self.low:
            return QParams(scale=torch.tensor(1.0 / levels, device=device), zero_point=torch.zeros((), device=device))
        unit = unit_of(max(-self.low, self.high))
        counts = self.counts.float()
        return _search_activation(counts, self.low / unit, self.high / unit, bits, symmetric, quick).times(unit)


def _search_activation(counts: Tensor, low: float, high: float, bits: int, symmetric: bool, quick: bool) -> QParams:
    """The best qparams for the counts of a histogram from ``low`` to ``high``."""
    levels, device = 2**bits - 1, counts.device
    edges = torch.linspace(low, high, _BINS + 1, device=device)
    centers = (edges[:-1] + edges[1:]) / 2
    if low == 0.0:
        centers[0] = 0.0  # a rectifier's zeros, most of the data, are exact
    used = counts > 0
    stride = _QUICK if quick else 1
    if symmetric:
        qmax = levels // 2
        search = _Search(centers[used][None], -qmax - 1, qmax, weights=counts[used])
        for step in range(stride, FRACTIONS + 1, stride):
            scale = torch.full((1,), max(-low, high) * step / FRACTIONS / qmax, device=device)
            search.offer(scale, torch.zeros_like(scale))
        best = search.result()
        return QParams(scale=best.scale[0], zero_point=best.zero_point[0])
    search = _Search(centers[used][None], 0, levels, weights=counts[used])
    two_sided = low < 0.0 < high
    enumerated = two_sided and bits <= _MAX_ENUMERATED_BITS
    for step in range(stride, FRACTIONS + 1, stride):
        fraction = step / FRACTIONS
        if enumerated and not quick:
            scale = torch.full((1,), (high - low) * fraction / levels, device=device)
            for zero_point in range(levels + 1):
                search.offer(scale, torch.full_like(scale, zero_point))
        else:
            bounds = torch.tensor([[low], [high]], device=device) * fraction
            search.offer_range(bounds[0], bounds[1], _SHIFTS if enumerated else (0,))
    best = search.result()
    return QParams(scale=best.scale[0], zero_point=best.zero_point[0])


def _histogram(parts: Iterable[Tensor], low: float, high: float, unit: float) -> Tensor:
    """How many elements fall into each of 8,192 bins of equal width, in float64; computed in ``unit``."""
    sums = [
        torch.histc(piece / unit, bins=_BINS, min=low / unit, max=high / unit).double()
        for part in parts
        for piece in part.flatten().float().split(_LARGEST_COUNT)
    ]
    return torch.stack(sums).sum(0)


class _Search:
    """Keeps, per row of ``x`` [C, K], the best of the candidates offered so far."""

    def __init__(self, x: Tensor, qmin: int, qmax: int, weights: Tensor | None = None) -> None:
        self._x, self._qmin, self._qmax, self._weights = x, qmin, qmax, weights
        largest = x.abs().amax(1)
        self._floor = torch.clamp(largest.max() * _SCALE_FLOOR / max(qmax, 1), min=_SCALE_OF_ZEROS)
        self._error = torch.full_like(largest, torch.inf)
        self._scale = torch.ones_like(largest)
        self._zero_point = torch.zeros_like(largest)

    def offer_range(self, low: Tensor, high: Tensor, shifts: Sequence[int] = (0,)) -> None:
        """Offer the scale and zero_point that map [low, high] onto [qmin, qmax]; ``shifts``: zero_points beside it."""
        scale = ((high - low) / (self._qmax - self._qmin)).clamp(min=self._floor)
        zero_point = self._qmin - torch.round(low / scale)
        for shift in shifts:
            self.offer(scale, torch.clamp(zero_point + shift, self._qmin, self._qmax))

    def offer(self, scale: Tensor, zero_point: Tensor) -> None:
        """Offer one candidate per row; ``scale`` and ``zero_point`` have shape [C]."""
        scale = scale.clamp(min=self._floor)
        s, z = scale[:, None], zero_point[:, None]
        x_hat = dequantize_affine(quantize_affine(self._x, s, z, self._qmin, self._qmax), s, z)
        errors = (self._x - x_hat).abs_().pow_(NORM)
        error = errors.mean(1) if self._weights is None else (errors * self._weights).sum(1)
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self._scale = torch.where(better, scale, self._scale)
        self._zero_point = torch.where(better, zero_point, self._zero_point)

    def result(self) -> QParams:
        return QParams(scale=self._scale.clone(), zero_point=self._zero_point.clone())
