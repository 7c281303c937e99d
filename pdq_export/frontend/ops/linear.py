"""Gemm, MatMul and Einsum."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.ops.common import same_device, via_int64
from pdq_export.frontend.registry import converter


@converter("Gemm", (9, 11, 13))
def _gemm(node: OnnxNode) -> Call:
    names = ("alpha", "beta", "transA", "transB")
    args = [node.tensor(0), node.tensor(1), node.tensor(2)]
    return Call(gemm, args, {name: node.attribute(name) for name in names})


@converter("MatMul", (9, 13))
def _matmul(node: OnnxNode) -> Call:
    return Call(matmul, node.tensors())


@converter("Einsum", (12, 28))
def _einsum(node: OnnxNode) -> Call:
    return Call(einsum, node.tensors(), {"equation": node.attribute("equation")})


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """ONNX Gemm: alpha * A' B' + beta * C, A' [M, K], B' [K, N], C broadcast to [M, N]."""
    a = a.t() if transA else a
    if alpha == beta == 1.0 and (c is None or (c.dim() == 1 and c.shape[0] == b.shape[0 if transB else 1])):
        return F.linear(a, b if transB else b.t(), c)
    y = torch.matmul(a, b.t() if transB else b)
    if alpha != 1.0:
        y = (y * alpha).to(y.dtype)
    if c is None or beta == 0.0:
        return y
    return y + (c if beta == 1.0 else (c * beta).to(c.dtype))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """ONNX MatMul: numpy.matmul, that is [..., M, K] x [..., K, N] -> [..., M, N], vectors without their axis."""
    return via_int64(torch.matmul, a, b)


def einsum(*operands: Tensor, equation: str) -> Tensor:
    """ONNX Einsum: sums of products over the letters that the result lacks."""
    return torch.einsum(equation, *same_device(*operands))
