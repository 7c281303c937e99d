"""Normalization."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import positive_axis, root, same_device, with_attributes
from pdq_export.frontend.registry import converter


@converter("BatchNormalization", (9, 14, 15))
def _batch_norm(node: OnnxNode) -> Call:
    if node.attribute("training_mode") or len([name for name in node.outputs if name]) > 1:
        raise node.unsupported("training mode (training_mode=1)", "export the model for inference (model.eval())")
    return Call(batch_norm, node.tensors(), {"epsilon": node.attribute("epsilon")})


@converter("LayerNormalization", 17)
def _layer_norm(node: OnnxNode) -> Call:
    args = [node.tensor(0), node.tensor(1), node.tensor(2)]
    options = {"axis": node.attribute("axis"), "epsilon": node.attribute("epsilon")}
    if len(node.outputs) == 1:
        return Call(layer_norm, args, options)
    return Call(layer_norm_with_statistics, args, options, outputs=True)


@converter("RMSNormalization", 23)
def _rms_norm(node: OnnxNode) -> Call:
    return Call(rms_norm, node.tensors(), {"axis": node.attribute("axis"), "epsilon": node.attribute("epsilon")})


@converter("GroupNormalization", (18, 21))
def _group_norm(node: OnnxNode) -> Call:
    options = {"num_groups": node.attribute("num_groups"), "epsilon": node.attribute("epsilon")}
    return Call(group_norm, node.tensors(), options)


@converter("MeanVarianceNormalization", (9, 13))
def _mean_variance_norm(node: OnnxNode) -> Call:
    axes = node.attribute("axes")
    return Call(mean_variance_norm, node.tensors(), {"axes": [0, 2, 3] if axes is None else axes})


def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float) -> Tensor:
    """ONNX BatchNormalization at inference: (x - mean) / sqrt(var + epsilon) * scale + bias, x [N, C, ...]."""
    if x.dim() < 2:
        return ((x - mean) / torch.sqrt(var + epsilon) * scale + bias).to(x.dtype)
    if x.dtype != mean.dtype or x.dtype != scale.dtype:
        wide = torch.promote_types(torch.promote_types(x.dtype, mean.dtype), scale.dtype)
        parts = [tensor.to(wide) for tensor in (scale, bias, mean, var)]
        return batch_norm(x.to(wide), *parts, epsilon=epsilon).to(x.dtype)
    return F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float) -> Tensor:
    """ONNX InstanceNormalization: mean 0 and variance 1 per image and channel, then scale and bias [C]."""
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float) -> Tensor:
    """ONNX GroupNormalization: per image and group of channels; scale and bias [C], before opset 21 [num_groups]."""
    channels = x.shape[1]
    if scale.shape[0] != channels:
        repeats = channels // num_groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float) -> Tensor:
    """ONNX LayerNormalization: over the axes from ``axis`` on; scale and bias are broadcast to them."""
    shape = x.shape[positive_axis(axis, x.dim()) :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    x, scale = same_device(x, scale)
    y = F.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else torch.add(*same_device(y, bias))


def layer_norm_with_statistics(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX LayerNormalization with its mean and 1 / standard deviation, in float32 or wider."""
    axes = list(range(positive_axis(axis, x.dim()), x.dim()))
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.to(wide).mean(axes, keepdim=True)
    var = (x.to(wide) - mean).square().mean(axes, keepdim=True)
    return layer_norm(x, scale, bias, axis=axis, epsilon=epsilon), mean, torch.rsqrt(var + epsilon)


def rms_norm(x: Tensor, scale: Tensor, *, axis: int, epsilon: float) -> Tensor:
    """ONNX RMSNormalization: x / sqrt(mean(x^2) + epsilon) * scale over the axes from ``axis`` on."""
    x, scale = same_device(x, scale)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = list(range(positive_axis(axis, x.dim()), x.dim()))
    y = wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return y.to(x.dtype) * scale


def mean_variance_norm(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """ONNX MeanVarianceNormalization: (x - mean) / (standard deviation + 1e-9) over ``axes``."""
    centred = x - x.mean(list(axes), keepdim=True)
    return centred / (root(centred.square().mean(list(axes), keepdim=True)) + 1e-9)


def lp_norm(x: Tensor, *, axis: int, p: int) -> Tensor:
    """ONNX LpNormalization: x / ||x||_p along ``axis``; 0 where the norm is 0."""
    size = x.abs().sum(axis, keepdim=True) if p == 1 else root(x.square().sum(axis, keepdim=True))
    return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, torch.ones_like(size), size))


def local_response_norm(x: Tensor, *, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """ONNX LRN: x / (bias + alpha / size * sum of squares of ``size`` neighbouring channels)^beta.

    The channels are c - floor((size - 1) / 2) to c + ceil((size - 1) / 2).
    """
    squares = x.square().flatten(2).unsqueeze(1)  # [N, 1, C, spatial]
    before = (size - 1) // 2
    padded = F.pad(squares, [0, 0, before, size - 1 - before])
    mean = F.avg_pool2d(padded, (size, 1), stride=1).squeeze(1).reshape(x.shape)
    return x / (bias + alpha * mean) ** beta


with_attributes("InstanceNormalization", (6, 22), instance_norm, "epsilon")
with_attributes("LpNormalization", (1, 22), lp_norm, "axis", "p")
with_attributes("LRN", (1, 13), local_response_norm, "size", "alpha", "beta", "bias")
