"""Interpolation along one axis, for every combination that ONNX's Resize knows.

Coordinates are computed in float32 because ONNX Runtime does: where they fall on a tie or a whole number, float64
would choose another pixel. They are computed where the data are: nothing is copied between devices.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

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


_KEPT = contextvars.ContextVar("kept", default=True)


def interpolate_axis(x: Tensor, index: int, axis: Axis, method: Method) -> Tensor:
    """X with axis ``index`` resized: [..., size, ...] -> [..., out, ...]."""
    nearest = method.mode == "nearest"
    wide = torch.promote_types(x.dtype, torch.float32)
    make = _table if _KEPT.get() else _table.__wrapped__
    table, outside = make(axis, method, wide, x.device)
    if nearest:
        y = x.index_select(index, table)
    else:
        y = torch.matmul(x.to(wide).movedim(index, -1), table.t()).movedim(-1, index)
        y = (y if x.is_floating_point() else y.round()).to(x.dtype)
    if outside is None:
        return y
    shape = [1] * x.dim()
    shape[index] = -1
    return torch.where(outside.reshape(shape), torch.full_like(y, method.extrapolation_value), y)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.no_grad()
def _table(axis: Axis, method: Method, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Indices [out] of the nearest pixels, or weights [out, size]; and with cropping, which pixels lie outside [out].

    Kept, since networks are run on one size again and again. Not to be written to.
    """
    where = coordinates(axis, method.coordinate_transformation_mode, device)
    crop = method.coordinate_transformation_mode == "tf_crop_and_resize"
    inside = where.clamp(0, axis.size - 1) if crop else where
    if method.mode == "nearest":
        table = _nearest(inside, axis, method.nearest_mode)
    else:
        table = _weights(inside.to(dtype), axis, method)
    return table, where != inside if crop else None


@contextlib.contextmanager
def without_kept_tables() -> Iterator[None]:
    """Within it every table is made anew, and none is kept: for what a device records and plays later.

    What is kept may be given up before that; and what is made there holds nothing until it is played.
    """
    token = _KEPT.set(False)
    try:
        yield
    finally:
        _KEPT.reset(token)


def forget_tables() -> None:
    """Give up what is kept between calls."""
    _table.cache_clear()


def coordinates(axis: Axis, mode: str, device: torch.device) -> Tensor:
    """Where each pixel of the result lies in the input, in pixels, by ``coordinate_transformation_mode``: [out]."""
    at = torch.arange(axis.out, dtype=torch.float32, device=device)
    # Divisors are tensors: by a Python number an accelerator multiplies with the reciprocal, which rounds otherwise.
    scale = at.new_full((), axis.scale)
    if mode == "asymmetric":
        return at / scale
    if mode == "tf_half_pixel_for_nn":
        return (at + 0.5) / scale
    if mode == "align_corners":
        return at * (axis.size - 1) / at.new_full((), max(axis.out - 1, 1))
    if mode == "tf_crop_and_resize":
        last = axis.size - 1
        if axis.out == 1:
            return at + 0.5 * (axis.begin + axis.end) * last
        return axis.begin * last + at * ((axis.end - axis.begin) * last / (axis.out - 1))
    if mode == "pytorch_half_pixel" and axis.out == 1:
        return at
    offset = 0.0
    if mode == "half_pixel_symmetric":  # the part of a pixel that rounding cut off, half on each side
        width = axis.out if axis.exact is None else axis.exact
        offset = axis.size / 2 * (1 - axis.out / width)
    return offset + (at + 0.5) / scale - 0.5


def _nearest(where: Tensor, axis: Axis, mode: str) -> Tensor:
    if mode == "simple":
        mode = "ceil" if axis.scale < 1 else "floor"
    if mode == "round_prefer_floor":
        rounded = torch.ceil(where - 0.5)
    elif mode == "round_prefer_ceil":
        rounded = torch.floor(where + 0.5)
    else:
        rounded = torch.floor(where) if mode == "floor" else torch.ceil(where)
    return rounded.clamp(0, axis.size - 1).to(torch.int64)


def _weights(where: Tensor, axis: Axis, method: Method) -> Tensor:
    """The matrix [out, size] of linear or cubic weights; taps beyond the border fall on the edge pixel.

    With ``antialias`` the kernel is stretched by 1 / scale when the axis shrinks.
    """
    shrink = min(axis.scale, 1.0) if method.antialias else 1.0
    # Coordinates lie less than a pixel outside the image, so that every tap is within this reach of it.
    reach = math.ceil((2.0 if method.mode == "cubic" else 1.0) / shrink) + 1
    taps = torch.arange(-reach, axis.size + reach, device=where.device)
    distance = ((taps - where.unsqueeze(1)) * shrink).abs()
    kernel = _cubic(distance, method.cubic_coeff_a) if method.mode == "cubic" else (1 - distance).clamp(min=0)
    if method.exclude_outside:
        kernel = kernel * ((taps >= 0) & (taps < axis.size))
    kernel = kernel / kernel.sum(1, keepdim=True)
    matrix = kernel.new_zeros(axis.out, axis.size)
    return matrix.index_add(1, taps.clamp(0, axis.size - 1), kernel)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel: equation (4) of "Cubic Convolution Interpolation", 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
