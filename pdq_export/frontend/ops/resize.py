"""Resize and Upsample: what is asked for, and which implementation serves it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.interpolate import KNOWN_VALUES, Axis, Method, interpolate_axis
from pdq_export.frontend.registry import converter

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_METHOD = (
    "mode",
    "coordinate_transformation_mode",
    "nearest_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "antialias",
)
_CENTRES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")


@converter("Upsample", 9)
def _upsample(node: OnnxNode) -> Call:
    return _resize_by_scales(node)


@converter("Resize", 10)
def _resize_10(node: OnnxNode) -> Call:
    return _resize_by_scales(node)


def _resize_by_scales(node: OnnxNode) -> Call:
    method = {
        "mode": node.attribute("mode"),
        "coordinate_transformation_mode": "asymmetric",
        # The opset leaves it open; ONNX Runtime rounds down when it enlarges and up when it shrinks.
        "nearest_mode": "simple",
    }
    return Call(resize, [node.tensor(0), None, node.parameter(1), None], method)


@converter("Resize", (11, 13, 18, 19))
def _resize(node: OnnxNode) -> Call:
    method = {name: node.attribute(name) for name in _METHOD if node.attribute(name) is not None}
    options = {
        "axes": node.attribute("axes"),
        "keep_aspect_ratio_policy": node.attribute("keep_aspect_ratio_policy") or "stretch",
    }
    _check(node, options | method)
    parameters = [_absent_if_empty(node.parameter(index)) for index in (1, 2, 3)]
    return Call(resize, [node.tensor(0), *parameters], options | method)


def _check(node: OnnxNode, method: dict[str, Any]) -> None:
    for name, known in KNOWN_VALUES.items():
        if method.get(name, known[0]) not in known:
            raise node.unsupported(f"{name} {method[name]!r} is unknown", f"use one of {', '.join(known)}")


def _absent_if_empty(value: Any) -> Any:
    return None if value == [] else value  # how opset 11 leaves an input out


def resize(
    x: Tensor,
    roi: Sequence[float] | Tensor | None,
    scales: Sequence[float] | Tensor | None,
    sizes: Sequence[int] | Tensor | None = None,
    *,
    axes: Sequence[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
    **method: Any,
) -> Tensor:
    """ONNX Resize: x with each of ``axes`` (all by default) scaled to ``scales`` or to ``sizes``.

    ``roi`` = [begins..., ends...] is read by tf_crop_and_resize only. ``method``: see ``Method``.
    """
    wanted = _target(x, axes, scales, sizes, keep_aspect_ratio_policy)
    how = Method(**method)
    crop = how.coordinate_transformation_mode == "tf_crop_and_resize"
    if crop and roi is not None:
        region = _floats(roi)
        count = len(region) // 2
        for position, axis in enumerate(_axes(x, axes)):
            wanted[axis] = dataclasses.replace(
                wanted[axis], begin=region[position], end=region[position + count], moved=True
            )
    changed = {index: axis for index, axis in enumerate(wanted) if axis.moved}
    if not changed:
        return x
    fast = _by_torch(x, changed, how)
    if fast is not None:
        return fast
    for index, target in changed.items():
        x = interpolate_axis(x, index, target, how)
    return x


def _target(
    x: Tensor,
    axes: Sequence[int] | None,
    scales: Sequence[float] | Tensor | None,
    sizes: Sequence[int] | Tensor | None,
    policy: str,
) -> list[Axis]:
    """For each axis of x the size it gets and the scale of its coordinates."""
    wanted = [Axis(size=size, out=size, scale=1.0) for size in x.shape]
    chosen = _axes(x, axes)
    given_scales = [] if scales is None else _floats(scales)
    given_sizes = [] if sizes is None else [int(value) for value in _floats(sizes)]
    if given_scales:
        for axis, scale in zip(chosen, given_scales, strict=True):
            # The product is taken in float32, as runtimes do: 10 * 0.7 is 7 there and 6.99... in float64.
            exact = float(np.float32(x.shape[axis]) * np.float32(scale))
            wanted[axis] = Axis(size=x.shape[axis], out=int(np.floor(exact)), scale=scale, exact=exact)
        return wanted
    ratios = [out / x.shape[axis] for axis, out in zip(chosen, given_sizes, strict=True)]
    common = {"not_larger": min, "not_smaller": max}.get(policy)
    for axis, out, ratio in zip(chosen, given_sizes, ratios, strict=True):
        size = x.shape[axis]
        if common is None:
            wanted[axis] = Axis(size=size, out=out, scale=ratio)
        else:
            ratio = common(ratios)
            exact = ratio * size
            wanted[axis] = Axis(size=size, out=int(np.floor(exact + 0.5)), scale=ratio, exact=exact)
    return wanted


def _axes(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    return list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]


def _floats(value: Sequence[float] | Tensor) -> list[float]:
    return [float(item) for item in (value.tolist() if isinstance(value, Tensor) else value)]


def _by_torch(x: Tensor, changed: dict[int, Axis], how: Method) -> Tensor | None:
    """The result of torch's own kernels in the cases where they compute the same, else None."""
    if not 3 <= x.dim() <= 5 or min(changed) < 2 or not x.is_floating_point():
        return None
    if any(axis.exact is not None and axis.exact != axis.out for axis in changed.values()):
        return None
    size = [changed[i].out if i in changed else x.shape[i] for i in range(2, x.dim())]
    coordinates = how.coordinate_transformation_mode
    if how.mode == "nearest":
        whole = all(axis.out % axis.size == 0 for axis in changed.values())
        # With whole factors every centre lies strictly inside one source pixel: no rounding mode makes a difference.
        centred = coordinates in _CENTRES and how.nearest_mode.startswith("round")
        floored = coordinates in ("asymmetric", "tf_half_pixel_for_nn") and how.nearest_mode in ("floor", "simple")
        return F.interpolate(x, size=size, mode="nearest") if whole and (centred or floored) else None
    # torch clamps coordinates at the border, which for linear weights is what ONNX's repeated edge comes to.
    corners = coordinates == "align_corners"
    if how.antialias or how.exclude_outside or not (corners or coordinates in _CENTRES):
        return None
    if any(axis.out == 1 for axis in changed.values()):
        return None  # conventions differ for a single pixel
    if any(axis.scale != axis.out / axis.size for axis in changed.values()) and not corners:
        return None
    if how.mode == "linear":
        return F.interpolate(x, size=size, mode=_LINEAR[x.dim()], align_corners=corners)
    if how.mode == "cubic" and x.dim() == 4 and how.cubic_coeff_a == -0.75:
        return F.interpolate(x, size=size, mode="bicubic", align_corners=corners)
    return None
