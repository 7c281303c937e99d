"""Conv and ConvTranspose."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import per_axis, same_device, spatial_rank, torch_pads, window_pads
from pdq_export.frontend.registry import converter

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_ATTRIBUTES = ("strides", "dilations", "pads", "auto_pad", "group")


def _check_rank(node: OnnxNode) -> None:
    weight = node.constant(1)
    if weight is not None and not 3 <= weight.dim() <= 5:
        raise node.unsupported(
            f"a weight of shape {list(weight.shape)}", "use a convolution over one to three spatial axes"
        )


@converter("Conv", (1, 11, 22))
def _conv(node: OnnxNode) -> Call:
    _check_rank(node)
    args = [node.tensor(0), node.tensor(1), node.tensor(2)]
    return Call(conv, args, {name: node.attribute(name) for name in _ATTRIBUTES})


@converter("ConvTranspose", (1, 11, 22))
def _conv_transpose(node: OnnxNode) -> Call:
    _check_rank(node)
    args = [node.tensor(0), node.tensor(1), node.tensor(2)]
    names = (*_ATTRIBUTES, "output_padding", "output_shape")
    return Call(conv_transpose, args, {name: node.attribute(name) for name in names})


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    """ONNX Conv: x [N, C, spatial], weight [M, C/group, kernel], bias [M] -> [N, M, spatial']."""
    rank = spatial_rank(x, "Conv")
    strides, dilations = per_axis(strides, rank, 1), per_axis(dilations, rank, 1)
    begins, ends = window_pads(x.shape[2:], weight.shape[2:], strides, dilations, pads, auto_pad)
    if begins != ends or min(begins) < 0:
        x = F.pad(x, torch_pads(begins, ends))
        begins = [0] * rank
    # Behind a Transpose: torch 2.13's backward pass of a strided 1x1 convolution writes beyond its memory where the
    # channels are the last in memory (CPU).
    x = x.contiguous()
    return _CONV[rank](x, weight, bias, strides, begins, dilations, group)


def conv_windows(
    x: Tensor,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    """What a Conv with these attributes multiplies at every position: [N, C, spatial', kernel], a view but for pads."""
    rank = spatial_rank(x, "Conv")
    strides, dilations = per_axis(strides, rank, 1), per_axis(dilations, rank, 1)
    begins, ends = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    windows = F.pad(x, torch_pads(begins, ends))
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
        windows = windows.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return windows


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
) -> Tensor:
    """ONNX ConvTranspose: x [N, C, spatial], weight [C, M/group, kernel], bias [M] -> [N, M, spatial'].

    size' = (size - 1) * stride + (kernel - 1) * dilation + 1 + output_padding - pad_begin - pad_end
    """
    rank = spatial_rank(x, "ConvTranspose")
    strides, dilations = per_axis(strides, rank, 1), per_axis(dilations, rank, 1)
    extra = per_axis(output_padding, rank, 0)
    full = [
        (size - 1) * stride + (window - 1) * dilation + 1
        for size, stride, window, dilation in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
    ]
    begins, ends, extra = _transpose_pads(x.shape[2:], full, strides, extra, pads, auto_pad, output_shape)
    native = begins == ends and min(begins) >= 0 and min(extra) >= 0
    if native and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return _CONV_TRANSPOSE[rank](x, weight, bias, strides, begins, extra, group, dilations)
    y = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, group, dilations)
    y = F.pad(y, torch_pads([-begin for begin in begins], [e - end for e, end in zip(extra, ends, strict=True)]))
    if bias is None:
        return y
    y, bias = same_device(y, bias)
    return y + bias.reshape(-1, *[1] * rank)


def _transpose_pads(
    sizes: Sequence[int],
    full: Sequence[int],
    strides: Sequence[int],
    extra: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
    output_shape: Sequence[int] | None,
) -> tuple[list[int], list[int], list[int]]:
    """What to crop at the beginning and end of the full result, and what to add at its end."""
    rank = len(sizes)
    wanted = None if output_shape is None else list(output_shape)[-rank:]
    given = wanted is not None
    if wanted is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted is None:
        explicit = auto_pad == "NOTSET" and pads is not None
        both = list(pads) if explicit and pads is not None else [0] * (2 * rank)
        return both[:rank], both[rank:], list(extra)
    begins, ends, added = [], [], []
    for size, out, more in zip(full, wanted, extra, strict=True):
        total = size + more - out
        crop = max(total, 0)
        begins.append(crop // 2 if auto_pad == "SAME_UPPER" else crop - crop // 2)
        ends.append(crop - begins[-1])
        # Where a kernel is smaller than its stride, SAME would have to grow the result; runtimes do not.
        added.append(more + (max(-total, 0) if given else 0))
    return begins, ends, added
