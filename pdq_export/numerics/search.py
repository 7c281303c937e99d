"""Scale search: the scale and zero_point that minimise mean |x - x_hat|^2.4 (BRECQ's and PD-Quant's published code)."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pdq_export.numerics.affine import dequantize_affine, quantize_affine
from pdq_export.numerics.units import unit_of
from pdq_export.ranks.alone import ALONE, Ranks

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
# Elements of all candidates that are compared at once: on a CPU what its caches hold, elsewhere as many as there are.
_ELEMENTS_ON_CPU, _ELEMENTS = 2**16, 2**26
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

    def scalar(self) -> "QParams":
        """Those of the first and only channel, as of a tensor."""
        return QParams(scale=self.scale[0], zero_point=self.zero_point[0])

    def times(self, unit: float) -> "QParams":
        """The qparams of the same tensor times ``unit``, a power of two.

        No scale is less than the least normal number of float32.
        """
        return QParams(scale=(self.scale * unit).clamp(min=_SMALLEST_SCALE), zero_point=self.zero_point)


def choose_weight_qparams(
    weight: Tensor, qmin: int, qmax: int, *, quick: bool = False, ranks: Ranks = ALONE
) -> QParams:
    """Per-channel qparams of a weight given as [C, K] (output channels first, the rest flattened).

    Unsigned, qmin = 0: every fraction k/100 of the channel's range and, up to 4 bits, every zero_point, coarse to
    fine. Signed: zero_point 0. Small and large weights are searched in units of their own size. ``quick``: every
    fifth fraction, and zero_points near the range's own: a few hundredths more error in a fifth of the time. ``ranks``:
    have the same weight, and search a part of the channels each.
    """
    unit = unit_of(float(weight.abs().max()))
    scaled = weight / unit
    own = scaled.tensor_split(ranks.size)[ranks.rank]
    found = _search_weight(own, qmin, qmax, quick, scaled.abs().max()).times(unit)
    return QParams(scale=ranks.rows(found.scale), zero_point=ranks.rows(found.zero_point))


def _search_weight(weight: Tensor, qmin: int, qmax: int, quick: bool, largest: Tensor) -> QParams:
    """``largest``: [], of the layer's weights, of which ``weight`` may be a part."""
    stride = _QUICK if quick else 1
    if qmin < 0:
        search = _Search(weight, qmin, qmax, largest=largest)
        limit = weight.abs().amax(1)
        search.offer(_fractions(limit, stride) / qmax, torch.zeros_like(limit)[None])
        return search.result()
    levels = qmax
    search = _Search(weight, qmin, levels, largest=largest)
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    if quick:
        shifts = _SHIFTS if levels < 2 ** (_MAX_ENUMERATED_BITS + 1) - 1 else (0,)
        search.offer_range(_fractions(low, stride), _fractions(high, stride), shifts)
        return search.result()
    if levels >= 2 ** (_MAX_ENUMERATED_BITS + 1) - 1:
        search.offer_range(_fractions(low), _fractions(high))
        return search.result()
    span = high - low
    every = torch.arange(levels + 1, dtype=span.dtype, device=span.device)
    search.offer(_each(_fractions(span, _COARSE) / levels, levels + 1), every.repeat(FRACTIONS // _COARSE)[:, None])
    coarse = search.result()
    offsets = _column(range(-_COARSE + 1, _COARSE), span)
    scales = (coarse.scale + offsets * span / (FRACTIONS * levels)).clamp(min=0)
    zero_points = (coarse.zero_point + _column(_SHIFTS, span)).clamp(0, levels)
    search.offer(_each(scales, len(_SHIFTS)), zero_points.repeat(len(scales), 1))
    return search.result()


def _fractions(values: Tensor, stride: int = 1) -> Tensor:
    """Hundredths of ``values`` [C], every one or so many apart: [FRACTIONS / stride, C]."""
    steps = [step / FRACTIONS for step in range(stride, FRACTIONS + 1, stride)]
    return values * torch.tensor(steps, dtype=values.dtype).to(values.device)[:, None]


def _column(numbers: Iterable[int], like: Tensor) -> Tensor:
    """Numbers as a column [n, 1], of the type of ``like`` and where it lies."""
    return torch.tensor(list(numbers), dtype=like.dtype).to(like.device)[:, None]


def _each(candidates: Tensor, times: int) -> Tensor:
    """Every candidate [n, C] so many times in a row: [n times, C]."""
    return candidates[:, None].expand(-1, times, -1).flatten(0, 1)


def choose_channel_scales(x: Tensor, qmax: int) -> Tensor:
    """The scale [C] that each channel of ``x`` [C, K], without negative numbers, would take by itself.

    zero_point 0; every fifth fraction of the channel's range, of which 0 is the least. 0 for a channel that is 0
    throughout.
    """
    largest = x.amax(1)
    unit = unit_of(float(largest.max()))
    search = _Search(x / unit, 0, qmax)
    search.offer(_fractions(largest / unit, _QUICK) / qmax, torch.zeros_like(largest)[None])
    return torch.where(largest > 0, search.result().scale * unit, 0.0)


def choose_activation_qparams(
    x: Tensor | Iterable[Tensor], bits: int, *, symmetric: bool = False, ranks: Ranks = ALONE
) -> QParams:
    """Per-tensor qparams of an activation of any shape, q in [0, 2^bits - 1].

    ``x`` may come in parts, which are gone through twice. ``symmetric``: q in [-2^(bits - 1), 2^(bits - 1) - 1] with
    zero_point 0, one-sided data too. Otherwise one-sided data get zero_point 0 (or qmax). Errors are summed over a
    histogram of 8,192 bins, so that the search costs the same for any number of elements. Small and
    large activations are searched in units of their own size. ``ranks``: have a share of the elements each.
    """
    return Histogram.of(x, ranks).choose_qparams(bits, symmetric=symmetric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often an activation's elements fall into each of 8,192 bins from ``low`` to ``high``.

    0 is between these. ``counts`` [bins], in float64. The search of any bits needs no more.
    """

    counts: Tensor
    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor | Iterable[Tensor], ranks: Ranks = ALONE) -> "Histogram":
        """Of an activation of any shape, which may come in parts; these are gone through twice.

        ``ranks``: have a share of the elements each.
        """
        parts = [x] if isinstance(x, Tensor) else x
        bounds = torch.stack([torch.stack(torch.aminmax(part)) for part in parts])
        low, high = min(float(bounds[:, 0].amin()), 0.0), max(float(bounds[:, 1].amax()), 0.0)
        lows, highs = zip(*ranks.gather((low, high)), strict=True)
        low, high = min(lows), max(highs)
        if high == low:
            return cls(counts=torch.zeros(_BINS, dtype=torch.float64, device=bounds.device), low=low, high=high)
        (counts,) = ranks.sum_over(_histogram(parts, low, high, unit_of(max(-low, high))))
        return cls(counts=counts, low=low, high=high)

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
        search.offer(_scales(max(-low, high), qmax, stride, device), torch.zeros(1, 1, device=device))
        return search.result().scalar()
    search = _Search(centers[used][None], 0, levels, weights=counts[used])
    enumerated = low < 0.0 < high and bits <= _MAX_ENUMERATED_BITS
    if enumerated and not quick:
        scales = _scales(high - low, levels, stride, device)
        every = torch.arange(levels + 1, dtype=torch.float32, device=device)
        search.offer(_each(scales, levels + 1), every.repeat(len(scales))[:, None])
    else:
        bounds = torch.tensor([low, high]).to(device)
        shifts = _SHIFTS if enumerated else (0,)
        search.offer_range(_fractions(bounds[:1], stride), _fractions(bounds[1:], stride), shifts)
    return search.result().scalar()


def _scales(span: float, levels: int, stride: int, device: torch.device) -> Tensor:
    """Scales [n, 1] under which hundredths of ``span``, so many apart, have so many levels."""
    scales = [span * step / FRACTIONS / levels for step in range(stride, FRACTIONS + 1, stride)]
    return torch.tensor(scales).to(device)[:, None]


def _histogram(parts: Iterable[Tensor], low: float, high: float, unit: float) -> Tensor:
    """How many elements fall into each of 8,192 bins of equal width, in float64; computed in ``unit``."""
    sums = [
        _count(piece / unit, low / unit, high / unit).double()
        for part in parts
        for piece in part.flatten().float().split(_LARGEST_COUNT)
    ]
    return torch.stack(sums).sum(0)


def _count(x: Tensor, low: float, high: float) -> Tensor:
    """histc, on the CPU where algorithms have to be deterministic: on a GPU it refuses to run then."""
    where = x.cpu() if torch.are_deterministic_algorithms_enabled() else x
    return torch.histc(where, bins=_BINS, min=low, max=high).to(x.device)


class _Search:
    """Keeps, per row of ``x`` [C, K], the best of the candidates offered so far.

    ``largest``: [], the magnitude that no scale is far below; by default that of ``x``.
    """

    def __init__(
        self, x: Tensor, qmin: int, qmax: int, weights: Tensor | None = None, largest: Tensor | None = None
    ) -> None:
        self._x, self._qmin, self._qmax, self._weights = x, qmin, qmax, weights
        largest = x.abs().max() if largest is None else largest
        self._floor = torch.clamp(largest * _SCALE_FLOOR / max(qmax, 1), min=_SCALE_OF_ZEROS)
        self._error = torch.full_like(x[:, 0], torch.inf)
        self._scale = torch.ones_like(self._error)
        self._zero_point = torch.zeros_like(self._error)
        elements = _ELEMENTS_ON_CPU if x.device.type == "cpu" else _ELEMENTS
        self._at_once = max(elements // max(x.numel(), 1), 1)

    def offer_range(self, low: Tensor, high: Tensor, shifts: Sequence[int] = (0,)) -> None:
        """Offer the scales and zero_points that map [low, high], [n, C] each, onto [qmin, qmax].

        ``shifts``: zero_points beside these.
        """
        scale = ((high - low) / (self._qmax - self._qmin)).clamp(min=self._floor)
        zero_point = self._qmin - torch.round(low / scale)
        near = zero_point[:, None] + _column(shifts, zero_point)
        self.offer(_each(scale, len(shifts)), near.flatten(0, 1).clamp(self._qmin, self._qmax))

    def offer(self, scale: Tensor, zero_point: Tensor) -> None:
        """Offer n candidates per row; ``scale`` and ``zero_point`` have shape [n, C], or one that broadcasts to it.

        Of equally good ones the first is kept.
        """
        scale = scale.clamp(min=self._floor)
        shape = torch.broadcast_shapes(scale.shape, zero_point.shape, self._error.shape)
        pairs = zip(*(v.expand(shape).split(self._at_once) for v in (scale, zero_point)), strict=True)
        for scales, zero_points in pairs:
            self._compare(scales, zero_points)

    def _compare(self, scale: Tensor, zero_point: Tensor) -> None:
        s, z = scale[:, :, None], zero_point[:, :, None]
        x_hat = dequantize_affine(quantize_affine(self._x, s, z, self._qmin, self._qmax), s, z)
        errors = (self._x - x_hat).abs_().pow_(NORM)
        error = errors.mean(2) if self._weights is None else (errors * self._weights).sum(2)
        if len(error) > 1:
            least, scale, zero_point = _least(error, scale, zero_point)
        else:
            least, scale, zero_point = error[0], scale[0], zero_point[0]
        better = least < self._error
        self._error = torch.where(better, least, self._error)
        self._scale = torch.where(better, scale, self._scale)
        self._zero_point = torch.where(better, zero_point, self._zero_point)

    def result(self) -> QParams:
        return QParams(scale=self._scale.clone(), zero_point=self._zero_point.clone())


def _least(error: Tensor, *candidates: Tensor) -> tuple[Tensor, ...]:
    """By column of ``error`` [n, C] the least, and the first of the ``candidates`` that has it, [C] each."""
    error = torch.where(error.isnan(), torch.inf, error)  # which is never the least
    least = error.amin(0)
    numbers = torch.arange(len(error), device=error.device)[:, None]
    first = torch.where(error == least, numbers, len(error)).amin(0, keepdim=True)  # min leaves open which, on a GPU
    return least, *(values.gather(0, first)[0] for values in candidates)
