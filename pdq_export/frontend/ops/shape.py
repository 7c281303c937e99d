"""Operators that rearrange, cut and join tensors, and Shape itself."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import Ints, as_ints, positive_axis, same_device, simple, with_attributes
from pdq_export.frontend.registry import converter


@converter("Reshape", (5, 13, 14, 19, 21, 23, 24, 25))
def _reshape(node: OnnxNode) -> Call:
    options = {"allowzero": node.attribute("allowzero") or 0}
    return Call(reshape, [node.tensor(0), node.parameter(1)], options)


@converter("Shape", (1, 13, 15, 19, 21, 23, 24, 25))
def _shape(node: OnnxNode) -> Call:
    options = {"start": node.attribute("start") or 0, "end": node.attribute("end")}
    return Call(shape, [node.tensor(0)], options)


@converter("Slice", 1)
def _slice_attributes(node: OnnxNode) -> Call:
    names = ("starts", "ends", "axes")
    return Call(slice_axes, [node.tensor(0), *(node.attribute(name) for name in names)])


@converter("Slice", (10, 11, 13))
def _slice_inputs(node: OnnxNode) -> Call:
    return Call(slice_axes, [node.tensor(0), *(node.parameter(index) for index in range(1, 5))])


@converter("Split", (2, 11))
def _split_attribute(node: OnnxNode) -> Call:
    options = {"axis": node.attribute("axis"), "count": len(node.outputs)}
    return Call(split, [node.tensor(0), node.attribute("split")], options, outputs=True)


@converter("Split", (13, 18))
def _split_input(node: OnnxNode) -> Call:
    options = {"axis": node.attribute("axis"), "count": len(node.outputs)}
    return Call(split, [node.tensor(0), node.parameter(1)], options, outputs=True)


@converter("Squeeze", (1, 11))
def _squeeze_attribute(node: OnnxNode) -> Call:
    return Call(squeeze, [node.tensor(0), node.attribute("axes")])


@converter("Squeeze", (13, 21, 23, 24, 25))
def _squeeze_input(node: OnnxNode) -> Call:
    return Call(squeeze, [node.tensor(0), node.parameter(1)])


@converter("Unsqueeze", (1, 11))
def _unsqueeze_attribute(node: OnnxNode) -> Call:
    return Call(unsqueeze, [node.tensor(0), node.attribute("axes")])


@converter("Unsqueeze", (13, 21, 23, 24, 25))
def _unsqueeze_input(node: OnnxNode) -> Call:
    return Call(unsqueeze, [node.tensor(0), node.parameter(1)])


@converter("Concat", (4, 11, 13))
def _concat(node: OnnxNode) -> Call:
    return Call(concat, node.tensors(), {"axis": node.attribute("axis")})


@converter("Expand", (8, 13))
def _expand(node: OnnxNode) -> Call:
    return Call(expand, [node.tensor(0), node.parameter(1)])


@converter("Tile", (6, 13))
def _tile(node: OnnxNode) -> Call:
    return Call(tile, [node.tensor(0), node.parameter(1)])


@converter("Transpose", (1, 13, 21, 23, 24, 25))
def _transpose(node: OnnxNode) -> Call:
    return Call(transpose, [node.tensor(0)], {"perm": node.attribute("perm")})


@converter("DepthToSpace", (1, 11, 13, 28))
def _depth_to_space(node: OnnxNode) -> Call:
    options = {"blocksize": node.attribute("blocksize"), "mode": node.attribute("mode") or "DCR"}
    return Call(depth_to_space, [node.tensor(0)], options)


@converter("SpaceToDepth", (1, 13, 28))
def _space_to_depth(node: OnnxNode) -> Call:
    options = {"blocksize": node.attribute("blocksize"), "mode": node.attribute("mode") or "DCR"}
    return Call(space_to_depth, [node.tensor(0)], options)


def reshape(x: Tensor, shape: Ints, *, allowzero: int) -> Tensor:
    """ONNX Reshape: -1 is what is left, 0 keeps the input's size unless ``allowzero``."""
    sizes = as_ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def shape(x: Tensor, *, start: int, end: int | None) -> Tensor:
    """ONNX Shape: the sizes of axes start to end, int64 on the CPU."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def size(x: Tensor) -> Tensor:
    """ONNX Size: the number of elements, int64 on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def flatten(x: Tensor, *, axis: int) -> Tensor:
    """ONNX Flatten: [product of sizes before ``axis``, product of the others]."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(x: Tensor, *, perm: Sequence[int] | None) -> Tensor:
    """ONNX Transpose: axis i of the result is axis perm[i]; reversed by default."""
    return x.permute(list(range(x.dim()))[::-1] if perm is None else list(perm))


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """ONNX Squeeze: without the given axes of size 1, or without all of size 1. Raises ValueError for a larger one."""
    if axes is None:
        return x.squeeze()
    dropped = as_ints(axes)
    if any(x.shape[axis] != 1 for axis in dropped):  # torch would keep it without a word
        raise ValueError(f"axes {dropped} of a tensor of shape {list(x.shape)}, which are to have size 1")
    return x.squeeze(tuple(dropped))


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """ONNX Unsqueeze: with axes of size 1 at these places of the result."""
    found = as_ints(axes)
    rank = x.dim() + len(found)
    for axis in sorted(axis % rank for axis in found):
        x = x.unsqueeze(axis)
    return x


def concat(*tensors: Tensor, axis: int) -> Tensor:
    """ONNX Concat."""
    return torch.cat(same_device(*tensors), dim=axis)


def split(x: Tensor, sizes: Ints | None = None, *, axis: int, count: int) -> tuple[Tensor, ...]:
    """ONNX Split: into the given sizes, or ``count`` equal parts of which the last may be smaller."""
    if sizes is None:
        whole = x.shape[axis]
        part = math.ceil(whole / count)
        sizes = [min(part, max(whole - index * part, 0)) for index in range(count)]
    return tuple(torch.split(x, as_ints(sizes), dim=axis))


def slice_axes(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    """ONNX Slice: numpy's x[start:end:step] along each of ``axes``."""
    first, last = as_ints(starts), as_ints(ends)
    chosen = list(range(len(first))) if axes is None else as_ints(axes)
    strides = [1] * len(first) if steps is None else as_ints(steps)
    for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
        axis = positive_axis(axis, x.dim())
        begin, stop, step = slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * axis + (slice(begin, max(stop, begin), step),)]
        else:
            x = x.index_select(axis, torch.arange(begin, min(stop, begin), step, device=x.device))
    return x


def expand(x: Tensor, shape: Ints) -> Tensor:
    """ONNX Expand: broadcast to ``shape``, where a size of 1 keeps the input's."""
    sizes = as_ints(shape)
    rank = max(x.dim(), len(sizes))
    own = [1] * (rank - x.dim()) + list(x.shape)
    asked = [1] * (rank - len(sizes)) + sizes
    return x.broadcast_to([a if b == 1 else b for a, b in zip(own, asked, strict=True)])


def tile(x: Tensor, repeats: Ints) -> Tensor:
    """ONNX Tile: repeated along each axis."""
    return x.repeat(as_ints(repeats))


def trilu(x: Tensor, k: Ints = 0, *, upper: int) -> Tensor:
    """ONNX Trilu: the upper or lower triangle of the last two axes, from diagonal k on."""
    diagonal = as_ints(k)[0]
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str) -> Tensor:
    """ONNX DepthToSpace: [N, C b^2, H, W] -> [N, C, H b, W b]; the block's place comes before C in mode DCR."""
    n, channels, height, width = x.shape
    depth = channels // blocksize**2
    if mode == "DCR":
        x = x.reshape(n, blocksize, blocksize, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, depth, blocksize, blocksize, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, depth, height * blocksize, width * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str) -> Tensor:
    """ONNX SpaceToDepth: the inverse of DepthToSpace."""
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    x = x.permute(0, 3, 5, 1, 2, 4) if mode == "DCR" else x.permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, channels * blocksize**2, height // blocksize, width // blocksize)


@converter("Trilu", 14)
def _trilu(node: OnnxNode) -> Call:
    diagonal = [node.parameter(1)] if node.has_input(1) else []
    return Call(trilu, [node.tensor(0), *diagonal], {"upper": node.attribute("upper")})


simple("Size", (1, 13, 19, 21, 23, 24, 25), size)
with_attributes("Flatten", (9, 11, 13, 21, 23, 24, 25), flatten, "axis")
