"""Operators that read elements by index."""

import torch
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import positive_axis, same_device
from pdq_export.frontend.registry import converter


@converter("Gather", (1, 11, 13))
def _gather(node: OnnxNode) -> Call:
    index = node.parameter(1)
    if isinstance(index, int):  # the usual way of reading one entry of a shape
        return Call(select, [node.tensor(0)], {"axis": node.attribute("axis"), "index": index})
    return Call(gather, node.tensors(), {"axis": node.attribute("axis")})


@converter("GatherElements", (11, 13))
def _gather_elements(node: OnnxNode) -> Call:
    return Call(gather_elements, node.tensors(), {"axis": node.attribute("axis")})


@converter("GatherND", (11, 12, 13))
def _gather_nd(node: OnnxNode) -> Call:
    return Call(gather_nd, node.tensors(), {"batch_dims": node.attribute("batch_dims") or 0})


@converter("TopK", 1)
def _top_k_attribute(node: OnnxNode) -> Call:
    return Call(top_k, [node.tensor(0), node.attribute("k")], {"axis": node.attribute("axis")}, outputs=True)


@converter("TopK", (10, 11, 24))
def _top_k(node: OnnxNode) -> Call:
    names = ("axis", "largest")
    options = {name: node.attribute(name) for name in names if node.attribute(name) is not None}
    return Call(top_k, [node.tensor(0), node.parameter(1)], options, outputs=True)


def select(x: Tensor, *, axis: int, index: int) -> Tensor:
    """ONNX Gather with one constant index: that slice, the axis removed."""
    return x.select(axis, index)


def gather(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """ONNX Gather: x[a, D, b] and indices of any shape I -> [a, I, b]; negative ones count from the end."""
    axis = positive_axis(axis, x.dim())
    indices = _from_front(indices.to(x.device), x.shape[axis])
    taken = x.index_select(axis, indices.reshape(-1))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """ONNX GatherElements: x along ``axis`` at indices, for every other position alike."""
    return torch.gather(x, axis, _from_front(indices.to(x.device), x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int) -> Tensor:
    """ONNX GatherND: indices [B, I, K] of the K axes of x [B, D1 ... DK, S] -> [B, I, S]."""
    x, indices = same_device(x, indices)
    depth = indices.shape[-1]
    batch = x.shape[:batch_dims]
    sizes = x.shape[batch_dims : batch_dims + depth]
    rows = x.reshape(batch.numel(), *x.shape[batch_dims:])
    picks = indices.reshape(batch.numel(), -1, depth)
    where = tuple(_from_front(picks[..., k], size) for k, size in enumerate(sizes))
    first = torch.arange(batch.numel(), device=x.device).unsqueeze(1)
    taken = rows[(first, *where)]
    return taken.reshape(*indices.shape[:-1], *x.shape[batch_dims + depth :])


def top_k(x: Tensor, k: int | list[int] | Tensor, *, axis: int = -1, largest: int = 1) -> tuple[Tensor, Tensor]:
    """ONNX TopK: the k largest (smallest) along ``axis``, sorted, and where; equal ones in order of their index."""
    count = int(k) if isinstance(k, int) else int(k[0])
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def _from_front(indices: Tensor, size: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)
