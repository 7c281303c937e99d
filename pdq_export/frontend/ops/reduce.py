"""Reductions, ArgMax, ArgMin and CumSum."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import Ints, as_ints, root, via_int64
from pdq_export.frontend.registry import converter

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return x.sum(axes, keepdim=keepdims, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keepdims)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(_sum(x, axes, keepdims), count, rounding_mode="trunc")


def _extreme(x: Tensor, axes: list[int], keepdims: bool, largest: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):  # torch refuses; ONNX gives the value that every other one beats
        return x.new_full(_reduced_shape(x, axes, keepdims), _worst(x.dtype, largest))
    return (x.amax if largest else x.amin)(axes, keepdim=keepdims)


def _max(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return _extreme(x, axes, keepdims, largest=True)


def _min(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return _extreme(x, axes, keepdims, largest=False)


def _prod(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdims, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return _sum(x.abs(), axes, keepdims)


def _l2(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    if not x.is_floating_point():
        return _sum(x * x, axes, keepdims).to(torch.float64).sqrt().to(x.dtype)
    return root(_sum(x * x, axes, keepdims))


def _sum_square(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return _sum(x * x, axes, keepdims)


def _log_sum(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return _sum(x, axes, keepdims).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keepdims).to(x.dtype) if axes else x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceProd": _prod,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def _worst(dtype: torch.dtype, largest: bool) -> float | int | bool:
    if dtype == torch.bool:
        return not largest
    if dtype.is_floating_point:
        return -math.inf if largest else math.inf
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


def _reduced_shape(x: Tensor, axes: list[int], keepdims: bool) -> list[int]:
    if keepdims:
        return [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return [size for axis, size in enumerate(x.shape) if axis not in axes]


def reduce(
    x: Tensor, axes: Ints | None = None, *, kind: str, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """ONNX Reduce*: over ``axes``, or over all where none are given, unless ``noop_with_empty_axes``.

    ``kind`` is the operator's name. With ``noop_with_empty_axes`` each element is reduced by itself.
    """
    found = [] if axes is None else [axis % max(x.dim(), 1) for axis in as_ints(axes)]
    if x.dim() == 0:
        x = x.reshape(1)
        return reduce(x, [0], kind=kind, keepdims=0)
    if not found:
        if noop_with_empty_axes:
            one = x.unsqueeze(-1)  # an axis of size 1 of its own
            return via_int64(lambda t: REDUCTIONS[kind](t, [t.dim() - 1], False), one)
        found = list(range(x.dim()))
    return via_int64(lambda t: REDUCTIONS[kind](t, found, bool(keepdims)), x)


def arg_extreme(x: Tensor, *, largest: bool, axis: int, keepdims: int, select_last_index: int = 0) -> Tensor:
    """ONNX ArgMax and ArgMin: where the extreme lies along ``axis``; of equal ones the first, or the last."""
    if select_last_index:
        x = x.flip(axis)
    index = (torch.argmax if largest else torch.argmin)(x, dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - index if select_last_index else index


def cumulative_sum(x: Tensor, axis: Ints, *, exclusive: int, reverse: int) -> Tensor:
    """ONNX CumSum: running sums along ``axis``, from the end with ``reverse``, without x itself if ``exclusive``."""
    along = as_ints(axis)[0]
    ordered = x.flip(along) if reverse else x
    sums = ordered.cumsum(along, dtype=x.dtype)
    sums = sums - ordered if exclusive else sums
    return sums.flip(along) if reverse else sums


def _axes_attribute(node: OnnxNode) -> Call:
    options = {"kind": node.op_type, "keepdims": node.attribute("keepdims")}
    return Call(reduce, [node.tensor(0), node.attribute("axes")], options)


def _axes_input(node: OnnxNode) -> Call:
    names = ("keepdims", "noop_with_empty_axes")
    options = {"kind": node.op_type} | {name: node.attribute(name) for name in names}
    return Call(reduce, [node.tensor(0), node.parameter(1)], options)


def _arg_extreme(node: OnnxNode) -> Call:
    options = {name: node.attribute(name) for name in ("axis", "keepdims")}
    options |= {
        "largest": node.op_type == "ArgMax",
        "select_last_index": node.attribute("select_last_index") or 0,
    }
    return Call(arg_extreme, [node.tensor(0)], options)


@converter("CumSum", (11, 14))
def _cumsum(node: OnnxNode) -> Call:
    names = ("exclusive", "reverse")
    options = {name: node.attribute(name) for name in names}
    return Call(cumulative_sum, [node.tensor(0), node.parameter(1)], options)


# From these versions on the axes are an input.
converter("ReduceSum", (1, 11))(_axes_attribute)
converter("ReduceSum", 13)(_axes_input)
for _name in ("ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
    converter(_name, (1, 11, 13))(_axes_attribute)
    converter(_name, 18)(_axes_input)
for _name in ("ReduceLogSum", "ReduceLogSumExp"):
    converter(_name, (1, 11, 13))(_axes_attribute)
    converter(_name, (18, 28))(_axes_input)
for _name in ("ReduceMax", "ReduceMin"):
    converter(_name, (1, 11, 12, 13))(_axes_attribute)
    converter(_name, (18, 20))(_axes_input)
for _name in ("ArgMax", "ArgMin"):
    converter(_name, (1, 11, 12, 13))(_arg_extreme)
