"""Pad."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import Ints, as_ints, as_number, torch_pads
from pdq_export.frontend.registry import converter

_MODES = ("constant", "reflect", "edge", "wrap")


def _mode(node: OnnxNode) -> str:
    mode = str(node.attribute("mode"))
    if mode not in _MODES:
        raise node.unsupported(f"mode {mode!r} is unknown", f"use one of {', '.join(_MODES)}")
    return mode


@converter("Pad", 2)
def _pad_attributes(node: OnnxNode) -> Call:
    args = [node.tensor(0), node.attribute("pads"), node.attribute("value")]
    return Call(pad, args, {"mode": _mode(node)})


@converter("Pad", (11, 13, 18, 19, 21, 23, 24, 25))
def _pad_inputs(node: OnnxNode) -> Call:
    args = [node.tensor(0), node.parameter(1), node.parameter(2), node.parameter(3)]
    return Call(pad, args, {"mode": _mode(node)})


def pad(x: Tensor, pads: Ints, value: Any = None, axes: Ints | None = None, *, mode: str) -> Tensor:
    """ONNX Pad: begins and ends of ``axes`` (all of them by default) grow, or shrink where negative.

    ``mode``: constant (``value``, 0 by default), reflect (without the edge), edge, wrap.
    """
    begins, ends = _full_pads(x.dim(), as_ints(pads), axes)
    if mode == "constant":
        return F.pad(x, torch_pads(begins, ends), value=0 if value is None else as_number(value))
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            x = _pad_by_index(x, axis, begin, end, mode)
    return x


def _full_pads(rank: int, pads: list[int], axes: Ints | None) -> tuple[list[int], list[int]]:
    chosen = list(range(rank)) if axes is None else as_ints(axes)
    begins, ends = [0] * rank, [0] * rank
    for position, axis in enumerate(chosen):
        begins[axis], ends[axis] = pads[position], pads[position + len(chosen)]
    return begins, ends


def _pad_by_index(x: Tensor, axis: int, begin: int, end: int, mode: str) -> Tensor:
    size = x.shape[axis]
    index = torch.arange(-begin, size + end, device=x.device)
    if mode == "edge":
        index = index.clamp(0, size - 1)
    elif mode == "wrap":
        index = index % size
    else:  # reflect
        period = max(2 * (size - 1), 1)
        index = index % period
        index = torch.minimum(index, period - index) if size > 1 else torch.zeros_like(index)
    return x.index_select(axis, index)
