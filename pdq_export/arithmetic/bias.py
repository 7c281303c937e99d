"""The bias as the runtime sees it: INT32 in units of input scale times weight scale.

Plain numpy, for the exporter and the simulation alike.
"""

import numpy as np
from numpy.typing import NDArray

from pdq_export.spec import Layer, Plan, Role

# A bias beyond this is moved to a coarser scale: the convolution's own INT32 sum needs the rest of the range.
LARGEST_INTEGER = 2**30


def has_integer_bias(plan: Plan, layer: Layer) -> bool:
    """Whether the bias of ``layer`` is written as INT32: the plan has it so, and input and weight are quantized."""
    source = plan.source(layer.input)
    quantized_input = source is not None and plan.points[source].role is not Role.WEIGHT
    return plan.integer_bias and layer.bias is not None and quantized_input and layer.weight in plan.points


def channel_bias(bias: NDArray[np.float32], weight_scale: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The bias as [C], also where a Gemm has it as [1, C] or one number; None where it is not per channel.

    ``weight_scale``: [], [C], or [C / groups] for a ConvTranspose.
    """
    if bias.size == 1:
        return np.full(max(weight_scale.size, 1), bias.reshape(()), np.float32)
    fits = bias.size == bias.shape[-1] and bias.size % max(weight_scale.size, 1) == 0
    return np.asarray(bias.reshape(-1), np.float32) if fits else None


def smallest_weight_scale(
    bias: NDArray[np.float32], input_scale: np.float32, weight_scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The least weight scale the bias allows, |bias| / (2^30 input_scale), shaped like ``weight_scale``."""
    needed = (np.abs(bias) / np.float32(LARGEST_INTEGER) / input_scale).astype(np.float32)
    groups = needed.reshape(-1, weight_scale.size).max(axis=0)
    return np.asarray(groups.reshape(weight_scale.shape), np.float32)


def bias_scale(
    bias: NDArray[np.float32], input_scale: np.float32, weight_scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scale of the INT32 bias per output channel: max(input_scale * weight_scale, |bias| / 2^30).

    The second term only matters where a channel's weights are almost zero and its bias would not fit INT32.
    ``bias``: [C], from `channel_bias`. ``input_scale``: []. ``weight_scale``: as there. Returns [C].
    """
    scales = np.asarray(weight_scale, np.float32).reshape(-1)
    product = np.float32(input_scale) * np.tile(scales, bias.size // scales.size)
    needed = np.abs(bias).astype(np.float32) / np.float32(LARGEST_INTEGER)
    return np.asarray(np.maximum(np.maximum(product, needed), np.finfo(np.float32).smallest_subnormal), np.float32)


def bias_integers(
    bias: NDArray[np.float32], input_scale: np.float32, weight_scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """The INT32 bias, round_half_even(bias / bias_scale), [C]; arguments as in `bias_scale`."""
    scale = bias_scale(bias, input_scale, weight_scale)
    integers = np.rint(bias.astype(np.float32) / scale).astype(np.float64)
    return np.asarray(np.clip(integers, -LARGEST_INTEGER, LARGEST_INTEGER), np.int32)


def round_bias(
    bias: NDArray[np.float32], input_scale: np.float32, weight_scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The bias after rounding, bias_integers * bias_scale: what a simulation has to add, float32.

    ``bias``: in the layer's own shape, which the result keeps (one number becomes [C]). A bias that is not
    per channel is not rounded. ``input_scale``: []. ``weight_scale``: [], [C], or [C / groups] for a
    ConvTranspose.
    """
    flat = channel_bias(bias, weight_scale)
    if flat is None:
        return bias
    integers = bias_integers(flat, input_scale, weight_scale).astype(np.float32)
    rounded = integers * bias_scale(flat, input_scale, weight_scale)
    return rounded.reshape(bias.shape if bias.size == flat.size else flat.shape)
