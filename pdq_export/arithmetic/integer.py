"""What onnxruntime computes between integers, to the last bit, for a simulation that is to agree with it exactly.

A QDQ graph read literally (dequantize, multiply, add, divide, round) and the fused integer kernels differ in the
last bit of a float, which moves an integer wherever a value lies that close to the middle between two. At 8 bits
that happens in about one image of four of a ResNet-20 and changes its logits by about one percent. The functions
give the integers of the kernels (MLAS, x86-64 with FMA3 and later), before clipping to the range of the output.
"""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Scale = NDArray[np.float32] | np.float32


def requantize(accumulator: Integers, input_scale: Scale, weight_scale: Scale, output_scale: Scale) -> Integers:
    """Output integers of QLinearConv and QLinearMatMul less zero_point: round_half_even(accumulator * multiplier).

    multiplier = (input_scale * weight_scale) / output_scale, every step rounded to float32. ``accumulator``: sum
    of (q_x - z_x)(q_w - z_w) plus the INT32 bias; the scales broadcast against it.
    """
    product = np.asarray(input_scale, np.float32) * np.asarray(weight_scale, np.float32)
    multiplier = product / np.asarray(output_scale, np.float32)
    return np.rint(accumulator.astype(np.float32) * multiplier).astype(np.int64)


def add_integers(
    a: Integers,
    a_scale: np.float32,
    a_zero: int,
    b: Integers,
    b_scale: np.float32,
    b_zero: int,
    scale: np.float32,
    zero: int,
) -> Integers:
    """Output integers of QLinearAdd with zero_point: round_half_even(fma(a, r_a, fma(b, r_b, fixed))).

    r_a = a_scale / scale, r_b = b_scale / scale, fixed = zero - fma(r_a, a_zero, r_b * b_zero), all float32. ``a``
    and ``b``: the integers as they lie in the tensors. float64 holds the product of 8 bits and a float32 exactly,
    so rounding its sum to float32 is the fused operation.
    """
    ratio_a, ratio_b = np.float32(a_scale) / np.float32(scale), np.float32(b_scale) / np.float32(scale)
    zeros = np.float32(np.float64(ratio_a) * a_zero + np.float64(ratio_b * np.float32(b_zero)))
    fixed = np.float32(zero) - zeros
    inner = (b * np.float64(ratio_b) + np.float64(fixed)).astype(np.float32)
    total = (a * np.float64(ratio_a) + inner.astype(np.float64)).astype(np.float32)
    return np.rint(total).astype(np.int64)


def average_integers(x: Integers, x_scale: np.float32, x_zero: int, scale: np.float32, zero: int) -> Integers:
    """Output integers of QLinearGlobalAveragePool: round_half_even(sum(x - x_zero) * multiplier) + zero.

    multiplier = x_scale / (scale * count), all float32; ``x``: [N, C, ...], summed over the ``count`` positions.
    """
    axes = tuple(range(2, x.ndim))
    multiplier = np.float32(x_scale) / (np.float32(scale) * np.float32(np.prod(x.shape[2:])))
    total: Integers = (x - x_zero).sum(axes, keepdims=True)
    average: Integers = np.rint(total.astype(np.float32) * multiplier).astype(np.int64)
    return average + zero
