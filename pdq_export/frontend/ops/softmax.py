"""Softmax and LogSoftmax, whose meaning changed in opset 13."""

import torch
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import positive_axis
from pdq_export.frontend.registry import converter


@converter("Softmax", (1, 11))
def _softmax_flat(node: OnnxNode) -> Call:
    return Call(softmax_flat, [node.tensor(0)], {"axis": node.attribute("axis"), "log": False})


@converter("LogSoftmax", (1, 11))
def _log_softmax_flat(node: OnnxNode) -> Call:
    return Call(softmax_flat, [node.tensor(0)], {"axis": node.attribute("axis"), "log": True})


@converter("Softmax", 13)
def _softmax(node: OnnxNode) -> Call:
    return Call(torch.softmax, [node.tensor(0)], {"dim": node.attribute("axis")})


@converter("LogSoftmax", 13)
def _log_softmax(node: OnnxNode) -> Call:
    return Call(torch.log_softmax, [node.tensor(0)], {"dim": node.attribute("axis")})


def softmax_flat(x: Tensor, *, axis: int, log: bool) -> Tensor:
    """ONNX (Log)Softmax before opset 13: over all axes from ``axis`` on together."""
    axis = positive_axis(axis, x.dim())
    flat = x.flatten(axis) if axis < x.dim() else x
    y = torch.log_softmax(flat, axis) if log else torch.softmax(flat, axis)
    return y.reshape(x.shape)
