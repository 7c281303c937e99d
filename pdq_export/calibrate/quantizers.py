"""Modules that own what is learned: activation scales and weight rounding. Each phase splices in its own kind."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from pdq_export.arithmetic.bias import LARGEST_INTEGER
from pdq_export.numerics.affine import (
    bernoulli_like,
    dequantize_affine,
    fake_quantize_affine,
    per_channel,
    quantize_affine,
)
from pdq_export.numerics.rounding import initial_alpha, rectified_sigmoid, soft_weight
from pdq_export.numerics.search import QParams, choose_weight_qparams
from pdq_export.ranks import ALONE, Ranks
from pdq_export.spec import Point

_REACHED = 0.49
_SMALLEST_FLOAT = float(np.finfo(np.float32).smallest_subnormal)


class ActivationQuantizer(nn.Module):
    """Per-tensor fake quantization; ``scale`` [] is a parameter, the integer ``zero_point`` is not.

    ``largest``: a number that the last integer's step has to include, so that it stands for all beyond; no scale is
    above what that takes.
    """

    def __init__(self, point: Point, qparams: QParams, largest: float = math.inf) -> None:
        super().__init__()
        self.point = point
        self.zero_point = int(qparams.zero_point)
        # A little less than where the number would be rounded to the integer before the last.
        self.largest_scale = largest / (point.qmax - self.zero_point - _REACHED) if largest < math.inf else math.inf
        self.scale = nn.Parameter(qparams.scale.clamp(max=self.largest_scale), requires_grad=False)
        self.low, self.high = point.qmin - self.zero_point, point.qmax - self.zero_point

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return fake_quantize_affine(x, self.scale, self.low, self.high, keep)


class DroppingQuantizer(nn.Module):
    """Fake quantization that keeps each element in floating point with ``keep_probability`` (QDrop)."""

    def __init__(self, quantizer: ActivationQuantizer, keep_probability: float, generator: torch.Generator) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.keep_probability = keep_probability
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.quantizer(x, bernoulli_like(x, self.keep_probability, self.generator))
        return kept


class WeightQuantizer(nn.Module):
    """A finished weight: integers ``q`` of its shape, ``scale`` and ``zero_point`` [C] along the point's axis.

    The float weight is computed when it is asked for: all finished weights are held until the end.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, point: Point, q: Tensor, qparams: QParams) -> None:
        super().__init__()
        self.point = point
        self.register_buffer("q", q)
        self.register_buffer("scale", qparams.scale)
        self.register_buffer("zero_point", qparams.zero_point)

    def forward(self) -> Tensor:
        scale, zero_point = (per_channel(v, self.point.axis, self.q.ndim) for v in (self.scale, self.zero_point))
        return dequantize_affine(self.q, scale, zero_point)

    @classmethod
    def nearest(cls, point: Point, weight: Tensor, qparams: QParams) -> "WeightQuantizer":
        """Round to nearest on the grid of ``qparams``."""
        scale, zero_point = (per_channel(v, point.axis, weight.ndim) for v in (qparams.scale, qparams.zero_point))
        return cls(point, quantize_affine(weight, scale, zero_point, point.qmin, point.qmax), qparams)


class SoftRounding(nn.Module):
    """A weight while its rounding is learned: q = clip(floor(w / scale) + h(alpha) + zero_point) (AdaRound)."""

    def __init__(self, point: Point, weight: Tensor, qparams: QParams) -> None:
        super().__init__()
        self.point = point
        self.qparams = qparams
        self._scale, self._zero_point = (
            per_channel(v, point.axis, weight.ndim) for v in (qparams.scale, qparams.zero_point)
        )
        ratio = weight / self._scale
        self._floor = torch.floor(ratio)
        self._low, self._high = point.qmin - self._zero_point, point.qmax - self._zero_point
        self.alpha = nn.Parameter(initial_alpha(ratio - self._floor))
        self._last_h: Tensor | None = None

    def h(self) -> Tensor:
        """The soft rounding, in [0, 1], of the weight's shape."""
        return rectified_sigmoid(self.alpha)

    def relaxed(self) -> Tensor:
        """The soft weight in units of its scale, q - zero_point where ``h`` is 0 or 1; of the weight's shape."""
        return torch.clamp(self._floor + self.h(), self._low, self._high)

    def forward(self) -> Tensor:
        weight, self._last_h = soft_weight(self.alpha, self._floor, self._low, self._high, self._scale)
        return weight

    def take_h(self) -> Tensor:
        """The ``h`` of the last weight that was put out, computed with it; once for each."""
        h, self._last_h = self._last_h, None
        return self.h() if h is None else h

    @torch.no_grad()
    def harden(self, rounded: Tensor | None = None) -> WeightQuantizer:
        """The finished weight for integers q - zero_point; without them ``h`` is rounded to 0 or 1."""
        if rounded is None:
            rounded = torch.clamp(self._floor + (self.alpha >= 0), self._low, self._high)
        return WeightQuantizer(self.point, rounded + self._zero_point, self.qparams)


class BiasQuantizer(nn.Module):
    """The bias as the runtime adds it: INT32 at input scale times weight scale, for the scales as they are now.

    ``exact``: the same in float64, which holds the product of an INT32 and a float32 scale, [C]; None for a bias that
    is not one per channel. The rules are those of `pdq_export.arithmetic.bias`, which the exporter follows, computed
    where the tensors are.
    """

    value: Tensor
    exact: Tensor | None

    @torch.no_grad()
    def __init__(self, bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> None:
        super().__init__()
        flat = _channel_bias(bias.detach(), weight_scale.numel())
        value, exact = bias.detach(), None
        if flat is not None:
            scale = _bias_scale(flat, input_scale.detach(), weight_scale.detach())
            integers = torch.round(flat / scale).double().clamp_(-LARGEST_INTEGER, LARGEST_INTEGER)
            exact = integers * scale.double()
            value = (integers.float() * scale).view(bias.shape if bias.numel() == flat.numel() else flat.shape)
        self.register_buffer("value", value)
        self.register_buffer("exact", exact)

    def forward(self) -> Tensor:
        return self.value


def _channel_bias(bias: Tensor, channels: int) -> Tensor | None:
    """The bias as [C]; None where it is not per channel. See `arithmetic.bias.channel_bias`."""
    if bias.numel() == 1:
        return bias.reshape(1).expand(max(channels, 1))
    fits = bias.numel() == bias.shape[-1] and bias.numel() % max(channels, 1) == 0
    return bias.reshape(-1) if fits else None


def _bias_scale(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """Scale [C] of the INT32 bias [C]. See `arithmetic.bias.bias_scale`."""
    scales = weight_scale.reshape(-1)
    product = input_scale * scales.repeat(len(bias) // len(scales))
    return torch.maximum(product, bias.abs() / LARGEST_INTEGER).clamp_(min=_SMALLEST_FLOAT)


def weight_qparams(weight: Tensor, point: Point, *, quick: bool = False, ranks: Ranks = ALONE) -> QParams:
    """Scale search for a weight of any layout, per channel along ``point.axis``; ``quick``: with fewer candidates.

    ``ranks``: search a part of the channels each.
    """
    assert point.axis is not None
    rows = weight.movedim(point.axis, 0).flatten(1)
    return choose_weight_qparams(rows, point.qmin, point.qmax, quick=quick, ranks=ranks)
