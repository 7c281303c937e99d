"""Pooling: over windows and over the whole image."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import (
    per_axis,
    root,
    simple,
    spatial_rank,
    torch_pads,
    window_pads,
    with_attributes,
)
from pdq_export.frontend.registry import converter

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_WINDOW = ("kernel_shape", "strides", "pads", "auto_pad", "dilations", "ceil_mode")


def _window_options(node: OnnxNode, *more: str) -> dict[str, Any]:
    if not 1 <= len(node.attribute("kernel_shape")) <= 3:
        raise node.unsupported(f"kernel_shape {node.attribute('kernel_shape')}", "pool over one to three spatial axes")
    options = {name: node.attribute(name) for name in (*_WINDOW, *more)}
    return options | {"ceil_mode": bool(options["ceil_mode"])}


@converter("MaxPool", (8, 10, 11, 12, 22))
def _max_pool(node: OnnxNode) -> Call:
    if len(node.outputs) == 1:
        return Call(max_pool, [node.tensor(0)], _window_options(node))
    return Call(max_pool_with_indices, [node.tensor(0)], _window_options(node, "storage_order"), outputs=True)


@converter("AveragePool", (7, 10, 11, 19, 22))
def _average_pool(node: OnnxNode) -> Call:
    return Call(average_pool, [node.tensor(0)], _window_options(node, "count_include_pad"))


@converter("LpPool", (2, 11, 18, 22))
def _lp_pool(node: OnnxNode) -> Call:
    return Call(lp_pool, [node.tensor(0)], _window_options(node, "p"))


class _Windows:
    """A window's geometry for one input: where it starts, how far it reaches over the end.

    ``overhang`` is what ceil_mode needs beyond the padding; it is never counted in an average.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        kernel_shape: Sequence[int],
        strides: Sequence[int] | None,
        pads: Sequence[int] | None,
        auto_pad: str,
        dilations: Sequence[int] | None,
        ceil_mode: bool,
    ) -> None:
        rank = len(sizes)
        self.kernel = list(kernel_shape)
        self.strides, self.dilations = per_axis(strides, rank, 1), per_axis(dilations, rank, 1)
        self.begins, self.ends = window_pads(sizes, self.kernel, self.strides, self.dilations, pads, auto_pad)
        self.ceil = ceil_mode and auto_pad == "NOTSET"
        self.counts, self.overhang = [], []
        for i, size in enumerate(sizes):
            padded = size + self.begins[i] + self.ends[i]
            spare = padded - (self.dilations[i] * (self.kernel[i] - 1) + 1)
            count = (math.ceil if self.ceil else math.floor)(spare / self.strides[i]) + 1
            if self.ceil and (count - 1) * self.strides[i] >= size + self.begins[i]:
                count -= 1  # a window that would start in the padding at the end is left out
            self.counts.append(count)
            self.overhang.append(max((count - 1) * self.strides[i] - spare, 0))

    @property
    def native(self) -> bool:
        """Whether torch's own pooling can pad: alike on both sides, by half a window at most."""
        return self.begins == self.ends and all(
            0 <= pad <= window // 2 for pad, window in zip(self.begins, self.kernel, strict=True)
        )

    def pad(self, x: Tensor, value: float) -> Tensor:
        """X with everything that a window can reach."""
        ends = [end + over for end, over in zip(self.ends, self.overhang, strict=True)]
        return F.pad(x, torch_pads(self.begins, ends), value=value)


def _windows(x: Tensor, **options: Any) -> _Windows:
    spatial_rank(x, "pooling")
    return _Windows(x.shape[2:], **options)


def max_pool(x: Tensor, **options: Any) -> Tensor:
    """ONNX MaxPool: the largest in each window; padding never wins. x [N, C, spatial]."""
    if not x.is_floating_point():
        return max_pool(x.to(torch.float64), **options).to(x.dtype)  # torch pools floating point only
    windows, pool = _windows(x, **options), _MAX_POOL[x.dim() - 2]
    if windows.native:
        return pool(x, windows.kernel, windows.strides, windows.begins, windows.dilations, windows.ceil)
    x = windows.pad(x, -math.inf)
    return pool(x, windows.kernel, windows.strides, 0, windows.dilations)


def max_pool_with_indices(x: Tensor, *, storage_order: int, **options: Any) -> tuple[Tensor, Tensor]:
    """ONNX MaxPool with indices into the flattened x; with ``storage_order`` 1 as if its spatial axes were reversed."""
    if not x.is_floating_point():
        y, indices = max_pool_with_indices(x.to(torch.float64), storage_order=storage_order, **options)
        return y.to(x.dtype), indices
    windows, pool = _windows(x, **options), _MAX_POOL[x.dim() - 2]
    padded = windows.pad(x, -math.inf)
    y, index = pool(padded, windows.kernel, windows.strides, 0, windows.dilations, return_indices=True)
    places, sizes = [], list(x.shape[2:])[::-1]  # fastest axis first
    for size, begin in zip(reversed(padded.shape[2:]), reversed(windows.begins), strict=True):
        places.append(index % size - begin)
        index = index // size
    if storage_order:
        places, sizes = places[::-1], sizes[::-1]
    flat, step = torch.zeros_like(index), 1
    for place, size in zip(places, sizes, strict=True):
        flat, step = flat + place * step, step * size
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * (x.dim() - 2))
    return y, planes * math.prod(x.shape[2:]) + flat


def average_pool(x: Tensor, *, count_include_pad: int = 0, **options: Any) -> Tensor:
    """ONNX AveragePool: the mean of each window, over padding too if ``count_include_pad``. x [N, C, spatial]."""
    windows = _windows(x, **options)
    if windows.native and max(windows.dilations) == 1:
        pool = _AVG_POOL[x.dim() - 2]
        mean: Tensor = pool(x, windows.kernel, windows.strides, windows.begins, windows.ceil, bool(count_include_pad))
        return mean
    sums = _window_sums(windows.pad(x, 0.0), windows)
    for axis, size in enumerate(x.shape[2:]):
        counts = _window_counts(windows, axis, size, bool(count_include_pad), x.device)
        shape = [1] * x.dim()
        shape[axis + 2] = -1
        sums = sums / counts.to(x.dtype).reshape(shape)
    return sums


def _window_counts(windows: _Windows, axis: int, size: int, include_pad: bool, device: torch.device) -> Tensor:
    """How many elements of one axis each window averages over."""
    low = 0 if include_pad else windows.begins[axis]
    high = windows.begins[axis] + size + (windows.ends[axis] if include_pad else 0)
    starts = torch.arange(windows.counts[axis], device=device) * windows.strides[axis]
    taps = torch.arange(windows.kernel[axis], device=device) * windows.dilations[axis]
    reached = starts.unsqueeze(1) + taps
    return ((reached >= low) & (reached < high)).sum(1)


def _window_sums(padded: Tensor, windows: _Windows) -> Tensor:
    """Sums over the windows of an input that is padded already."""
    rank = padded.dim() - 2
    if max(windows.dilations) == 1:
        mean: Tensor = _AVG_POOL[rank](padded, windows.kernel, windows.strides)
        return mean * math.prod(windows.kernel)
    ones = torch.ones(1, 1, *windows.kernel, dtype=padded.dtype, device=padded.device)
    planes = padded.reshape(-1, 1, *padded.shape[2:])
    sums = _CONV[rank](planes, ones, None, windows.strides, 0, windows.dilations)
    return sums.reshape(*padded.shape[:2], *sums.shape[2:])


def lp_pool(x: Tensor, *, p: int, **options: Any) -> Tensor:
    """ONNX LpPool: (sum of |x|^p)^(1/p) over each window. x [N, C, spatial]."""
    windows = _windows(x, **options)
    return root(_window_sums(windows.pad(x.abs() ** p, 0.0), windows), 1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def global_average_pool(x: Tensor) -> Tensor:
    """ONNX GlobalAveragePool: [N, C, spatial] -> [N, C, 1, ...]."""
    return x.mean(_spatial(x), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """ONNX GlobalMaxPool: [N, C, spatial] -> [N, C, 1, ...]."""
    return x.amax(_spatial(x), keepdim=True)


def global_lp_pool(x: Tensor, *, p: int) -> Tensor:
    """ONNX GlobalLpPool: (sum of |x|^p)^(1/p), [N, C, spatial] -> [N, C, 1, ...]."""
    return root((x.abs() ** p).sum(_spatial(x), keepdim=True), 1 / p)


simple("GlobalAveragePool", (1, 22), global_average_pool)
simple("GlobalMaxPool", (1, 22), global_max_pool)
with_attributes("GlobalLpPool", (2, 22), global_lp_pool, "p")
