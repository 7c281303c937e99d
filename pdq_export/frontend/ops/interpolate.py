"""Interpolation along one axis, for every combination that ONNX's Resize knows.

Coordinates are computed in float32 because ONNX Runtime does: where they fall on a tie or a whole number, float64
would choose another pixel.
"""

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Weights = NDArray[np.float64]

KNOWN_VALUES = {
    "mode": ("nearest", "linear", "cubic"),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "coordinate_transformation_mode": (
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "tf_half_pixel_for_nn",
        "tf_crop_and_resize",
    ),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: ``size`` pixels become ``out``; ``scale`` = out / size for the coordinates.

    ``exact`` is size * scale before rounding, None where ``out`` was given; ``begin``, ``end`` are the cropped
    region as fractions of the axis.
    """

    size: int
    out: int
    scale: float
    exact: float | None = None
    begin: float = 0.0
    end: float = 1.0
    moved: bool = False

    def __post_init__(self) -> None:
        if self.out != self.size or self.scale != 1.0:
            object.__setattr__(self, "moved", True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """The attributes of ONNX Resize, by their names there.

    ``nearest_mode`` "simple" is that of opset 10: floor, or ceil where the axis shrinks.
    """

    mode: str = "nearest"
    coordinate_transformation_mode: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    extrapolation_value: float = 0.0
    antialias: int = 0


def interpolate_axis(x: Tensor, index: int, axis: Axis, method: Method) -> Tensor:
    """X with axis ``index`` resized: [..., size, ...] -> [..., out, ...]."""
    where = coordinates(axis, method.coordinate_transformation_mode)
    if method.mode == "nearest":
        rounding = method.nearest_mode
        if rounding == "simple":
            rounding = "ceil" if axis.scale < 1 else "floor"
        nearest = np.clip(_round(where, rounding), 0, axis.size - 1).astype(np.int64)
        y = x.index_select(index, torch.from_numpy(nearest).to(x.device))
    else:
        weights = torch.from_numpy(_weights(where, axis, method)).to(x.device)
        wide = torch.promote_types(x.dtype, torch.float32)
        y = torch.matmul(x.to(wide).movedim(index, -1), weights.to(wide).t()).movedim(-1, index)
        y = (y if x.is_floating_point() else y.round()).to(x.dtype)
    if method.coordinate_transformation_mode != "tf_crop_and_resize":
        return y
    outside = torch.from_numpy((where < 0) | (where > axis.size - 1)).to(x.device)
    shape = [1] * x.dim()
    shape[index] = -1
    return torch.where(outside.reshape(shape), torch.full_like(y, method.extrapolation_value), y)


def coordinates(axis: Axis, mode: str) -> Floats:
    """Where each pixel of the result lies in the input, in pixels, by ``coordinate_transformation_mode``."""
    f = np.float32
    at = np.arange(axis.out, dtype=f)
    scale = f(axis.scale)
    if mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        if mode == "pytorch_half_pixel" and axis.out == 1:
            return np.zeros(1, f)
        offset = f(0)
        if mode == "half_pixel_symmetric":  # the part of a pixel that rounding down cut off, half on each side
            width = axis.out if axis.exact is None else axis.exact
            offset = f(axis.size / 2 * (1 - axis.out / width))
        return np.asarray(offset + (at + f(0.5)) / scale - f(0.5), f)
    if mode == "tf_half_pixel_for_nn":
        return np.asarray((at + f(0.5)) / scale, f)
    if mode == "asymmetric":
        return np.asarray(at / scale, f)
    if mode == "align_corners":
        return np.zeros(1, f) if axis.out == 1 else np.asarray(at * f(axis.size - 1) / f(axis.out - 1), f)
    last = f(axis.size - 1)  # tf_crop_and_resize
    begin, end = f(axis.begin), f(axis.end)
    if axis.out == 1:
        return np.asarray([f(0.5) * (begin + end) * last], f)
    return np.asarray(begin * last + at * ((end - begin) * last / f(axis.out - 1)), f)


def _round(where: Floats, mode: str) -> Floats:
    if mode == "round_prefer_floor":
        return np.asarray(np.ceil(where - np.float32(0.5)), np.float32)
    if mode == "round_prefer_ceil":
        return np.asarray(np.floor(where + np.float32(0.5)), np.float32)
    return np.floor(where) if mode == "floor" else np.ceil(where)


def _weights(where: Floats, axis: Axis, method: Method) -> Weights:
    """The matrix [out, size] of linear or cubic weights; taps beyond the border fall on the edge pixel.

    With ``antialias`` the kernel is stretched by 1 / scale when the axis shrinks.
    """
    shrink = min(axis.scale, 1.0) if method.antialias else 1.0
    support = (2.0 if method.mode == "cubic" else 1.0) / shrink
    positions = where.astype(np.float64)[:, None]
    first = math.floor(positions.min() - support) if where.size else 0
    last = math.ceil(positions.max() + support) if where.size else 0
    taps = np.arange(first, last + 1)
    distance = np.abs((taps[None, :] - positions) * shrink)
    kernel = _cubic(distance, method.cubic_coeff_a) if method.mode == "cubic" else np.clip(1 - distance, 0, None)
    if method.exclude_outside:
        kernel = np.where((taps >= 0) & (taps < axis.size), kernel, 0.0)
    kernel = kernel / kernel.sum(1, keepdims=True)
    matrix = np.zeros((axis.out, axis.size))
    for tap, column in zip(np.clip(taps, 0, axis.size - 1), kernel.T, strict=True):
        matrix[:, tap] += column
    return matrix


def _cubic(distance: Weights, a: float) -> Weights:
    """Keys' cubic convolution kernel: equation (4) of "Cubic Convolution Interpolation", 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
