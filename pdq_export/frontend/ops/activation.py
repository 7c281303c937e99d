"""Activation functions, element by element."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import Scalar, same_device, simple, with_attributes
from pdq_export.frontend.registry import converter


@converter("Clip", 6)
def _clip_attributes(node: OnnxNode) -> Call:
    return Call(clip, [node.tensor(0), node.attribute("min"), node.attribute("max")])


@converter("Clip", (11, 12, 13))
def _clip_inputs(node: OnnxNode) -> Call:
    return Call(clip, [node.tensor(0), _bound(node.parameter(1)), _bound(node.parameter(2))])


def _bound(value: Any) -> Any:
    """Exporters write scalars as tensors of one element too."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def clip(x: Tensor, low: Scalar | None = None, high: Scalar | None = None) -> Tensor:
    """ONNX Clip: min(max(x, low), high); None is no bound."""
    if low is None and high is None:
        return x
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        if low is not None and high is not None and low <= high and x.is_floating_point():
            return F.hardtanh(x, low, high)  # whose gradient takes one operator, clamp's five
        return torch.clamp(x, low, high)
    if low is not None:
        x = torch.maximum(x, _like(low, x))
    return x if high is None else torch.minimum(x, _like(high, x))


def _like(value: Scalar, x: Tensor) -> Tensor:
    """A bound as a tensor like ``x``, filled where it lies: a number made on the CPU would be copied each time."""
    return value.to(x.device, x.dtype) if isinstance(value, Tensor) else x.new_full((), value)


def leaky_relu(x: Tensor, *, alpha: float) -> Tensor:
    """ONNX LeakyRelu: x for x >= 0, else alpha * x."""
    return F.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """ONNX PRelu: x for x >= 0, else slope * x; slope is broadcast to x."""
    x, slope = same_device(x, slope)
    return torch.where(x < 0, x * slope, x)


def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """ONNX HardSigmoid: clip(alpha * x + beta, 0, 1)."""
    return torch.clamp(alpha * x + beta, 0, 1)


def elu(x: Tensor, *, alpha: float) -> Tensor:
    """ONNX Elu: x for x >= 0, else alpha * (exp(x) - 1)."""
    return F.elu(x, alpha)


def selu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """ONNX Selu: gamma * x for x > 0, else gamma * alpha * (exp(x) - 1)."""
    return gamma * F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float) -> Tensor:
    """ONNX Celu: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return F.celu(x, alpha)


def gelu(x: Tensor, *, approximate: str) -> Tensor:
    """ONNX Gelu: x * Phi(x), exact ("none") or by tanh ("tanh")."""
    return F.gelu(x, approximate=approximate)


def swish(x: Tensor, *, alpha: float) -> Tensor:
    """ONNX Swish: x * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def softplus(x: Tensor) -> Tensor:
    """ONNX Softplus: log(1 + exp(x)), by torch's linear branch only where float64 cannot tell."""
    return F.softplus(x, threshold=40.0)


def thresholded_relu(x: Tensor, *, alpha: float) -> Tensor:
    """ONNX ThresholdedRelu: x for x > alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: Tensor, *, bias: float, lambd: float) -> Tensor:
    """ONNX Shrink: x + bias for x < -lambd, x - bias for x > lambd, else 0."""
    moved = torch.where(x > 0, x - bias, x + bias)
    return torch.where(x.abs() > lambd, moved, torch.zeros_like(moved)).to(x.dtype)


simple("Relu", (6, 13, 14), F.relu)
simple("PRelu", (9, 16), prelu)
simple("Sigmoid", (6, 13), torch.sigmoid)
simple("HardSwish", (14, 22), F.hardswish)
simple("Tanh", (6, 13), torch.tanh)
simple("Softplus", (1, 22), softplus)
simple("Softsign", (1, 22), F.softsign)
simple("Mish", (18, 22), F.mish)
with_attributes("LeakyRelu", (6, 16), leaky_relu, "alpha")
with_attributes("HardSigmoid", (6, 22), hard_sigmoid, "alpha", "beta")
with_attributes("Elu", (6, 22), elu, "alpha")
with_attributes("Selu", (6, 22), selu, "alpha", "gamma")
with_attributes("Celu", (12, 28), celu, "alpha")
with_attributes("Gelu", 20, gelu, "approximate")
with_attributes("Swish", 24, swish, "alpha")
with_attributes("ThresholdedRelu", (10, 22), thresholded_relu, "alpha")
with_attributes("Shrink", 9, shrink, "bias", "lambd")
