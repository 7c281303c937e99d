"""The constants of layers as QONNX has them, and read back: floats that lie on the grids of their integers.

Division and product round once each, by up to 2^-24 of the number: integers of a weight, of up to 8 bits, always come
back. Those of a bias have up to 30 bits: there the float next to the product can be the one that does.
"""

import numpy as np
from numpy.typing import NDArray

from pdq_export.arithmetic.bias import bias_integers, bias_scale
from pdq_export.errors import ExportError
from pdq_export.export.constants import Bias, Weight, along_axis
from pdq_export.spec import Point

QUANT = "Quant"

Floats = NDArray[np.float32]
_NEIGHBOURS = (0, 1, -1, 2, -2)  # how many floats up from the product


def weight_values(weight: Weight) -> Floats:
    """(integers - zero_point) * scale, of the weight's shape.

    Raises ExportError where a Quant would make other integers of it.
    """
    scale = _scale_along(weight)
    with np.errstate(all="ignore"):
        values = weight.centered.astype(np.float32) * scale
        again = np.rint(values / scale + weight.along_axis(weight.zero_point).astype(np.float32))
    if not np.array_equal(again, weight.integers):
        raise ExportError(
            f"weight {weight.point.tensor!r}: its integers times its scale, up to {weight.scale.max():.4g}, are no "
            "floats that quantize to them again; expected weights within float32's range; leave the layer in float "
            "with --exclude"
        )
    return np.asarray(values, np.float32)


def read_weight(values: Floats, scale: Floats, point: Point, zero_point: NDArray[np.int16]) -> Weight:
    """The weight that `weight_values` was given; ``scale`` as it broadcasts, ``zero_point`` [] or [C]."""
    flat = scale.reshape(() if point.axis is None else -1)
    learned = np.broadcast_to(zero_point, flat.shape)
    with np.errstate(all="ignore"):
        centered = np.rint(values / scale).astype(np.int16)
    return Weight(
        point=point,
        integers=np.asarray(centered + along_axis(learned, point.axis, values.ndim), np.int16),
        zero_point=np.asarray(learned, np.int16),
        scale=np.asarray(flat, np.float32),
    )


def bias_values(bias: Bias, input_scale: np.float32, weight_scale: Floats) -> Floats:
    """Integers * scale, [C], or the nearest float from which `read_bias` has both.

    There is one, since they were made of a float. Raises ExportError where they were not.
    """
    nearest = bias.integers.astype(np.float32) * bias.scale
    values, found = nearest.copy(), np.zeros(nearest.shape, bool)
    for steps in _NEIGHBOURS:
        moved = _moved(nearest, steps)
        same = bias_integers(moved, input_scale, weight_scale) == bias.integers
        same &= bias_scale(moved, input_scale, weight_scale) == bias.scale
        values = np.where(same & ~found, moved, values)
        found |= same
    if not found.all():
        channel = int(np.argmin(found))
        raise ExportError(
            f"bias {bias.tensor!r}: {bias.integers[channel]} at scale {bias.scale[channel]}, of channel {channel}, is "
            "not what any float is rounded to; expected what was settled for the layer"
        )
    return np.asarray(values, np.float32)


def read_bias(tensor: str, values: Floats, input_scale: np.float32, weight_scale: Floats) -> Bias:
    """The bias that `bias_values` was given."""
    return Bias(
        tensor=tensor,
        integers=bias_integers(values, input_scale, weight_scale),
        scale=bias_scale(values, input_scale, weight_scale),
    )


def _moved(values: Floats, steps: int) -> Floats:
    """The floats so many steps up, or down."""
    for _ in range(abs(steps)):
        values = np.nextafter(values, np.float32(np.copysign(np.inf, steps)))
    return values


def _scale_along(weight: Weight) -> Floats:
    return np.asarray(along_axis(weight.scale, weight.point.axis, weight.integers.ndim), np.float32)
