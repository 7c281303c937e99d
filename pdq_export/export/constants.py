"""What the layers of a quantized model hold, settled once for every layout: the integers of weights and biases."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export.arithmetic.bias import (
    bias_integers,
    bias_scale,
    channel_bias,
    has_integer_bias,
    smallest_weight_scale,
)
from pdq_export.errors import ExportError
from pdq_export.graph.lookup import GraphIndex, attribute, describe
from pdq_export.spec import Layer, Plan, Point, QuantizedTensor, QuantizedTensors, Role

INT8 = np.iinfo(np.int8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight as it is written: w_hat = (integers - zero_point) * scale.

    ``integers``: int16, the weight's shape. ``zero_point`` (int16) and ``scale`` (float32): [] or [C] along the point's
    axis. A Gemm's alpha is in the scale already.
    """

    point: Point
    integers: NDArray[np.int16]
    zero_point: NDArray[np.int16]
    scale: NDArray[np.float32]

    @property
    def key(self) -> tuple[str, bytes]:
        """The same for layers that share the weight as it is written."""
        return self.point.tensor, self.scale.tobytes()

    def along_axis(self, values: NDArray[np.int16]) -> NDArray[np.int16]:
        """[] or [C] as [1, .., C, .., 1], ready to broadcast against the weight."""
        return np.asarray(along_axis(values, self.point.axis, self.integers.ndim), np.int16)

    @property
    def centered(self) -> NDArray[np.int16]:
        """The integers less zero_point, int16; they fit INT8."""
        return np.asarray(self.integers - self.along_axis(self.zero_point), np.int16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bias:
    """A bias in INT32, [C], and its float32 scale, [C]; a Gemm's beta is in it already."""

    tensor: str
    integers: NDArray[np.int32]
    scale: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConstants:
    """The quantized constants of one layer; ``bias`` is None if there is none or if it stays in float."""

    weight: Weight
    bias: Bias | None


def settle_constants(index: GraphIndex, plan: Plan, tensors: QuantizedTensors) -> dict[str, LayerConstants]:
    """The constants of every layer with a quantized weight, by node name.

    Raises ExportError, naming the tensor, if what was learned does not fit the model or its own bits.
    """
    for name, point in plan.points.items():
        if point.role is Role.WEIGHT:
            _check_weight(index, tensors[name])
    return {
        layer.node: _settle(index, plan, tensors, index.nodes[layer.node], layer)
        for layer in plan.layers
        if layer.weight in plan.points
    }


def along_axis(values: NDArray[Any], axis: int | None, rank: int) -> NDArray[Any]:
    """[] or [C] as [1, .., C, .., 1] of ``rank`` axes, C at ``axis``."""
    shape = [1] * rank
    if axis is not None:
        shape[axis] = values.size
    return values.reshape(shape)


def _settle(index: GraphIndex, plan: Plan, tensors: QuantizedTensors, node: NodeProto, layer: Layer) -> LayerConstants:
    weight, (alpha, beta) = tensors[layer.weight], _gemm_factors(node)
    learned = np.asarray(weight.scale, np.float32) * alpha
    bias = index.constant(layer.bias) if has_integer_bias(plan, layer) else None
    bias = None if bias is None else channel_bias(bias, weight.scale)
    if bias is None or layer.bias is None:
        return LayerConstants(weight=_shrunk(weight, learned, learned), bias=None)
    bias, input_scale = bias * beta, np.float32(tensors[plan.source(layer.input) or ""].scale)
    scale = np.maximum(learned, smallest_weight_scale(bias, input_scale, learned))
    integers = bias_integers(bias, input_scale, scale)
    return LayerConstants(
        weight=_shrunk(weight, learned, scale),
        bias=Bias(tensor=layer.bias, integers=integers, scale=bias_scale(bias, input_scale, scale)),
    )


def _shrunk(quantized: QuantizedTensor, learned: NDArray[np.float32], scale: NDArray[np.float32]) -> Weight:
    """The weight at ``scale``: where that was enlarged over what was learned, integers move to the coarser grid."""
    point, integers = quantized.point, quantized.integers
    assert integers is not None
    zero_point, shrink = (
        along_axis(np.asarray(values, np.float64), point.axis, integers.ndim)
        for values in (quantized.zero_point, (learned / scale).astype(np.float64))
    )
    centered = np.rint((integers - zero_point) * shrink)
    if max(abs(centered).max(initial=0), abs(zero_point).max()) > INT8.max:
        raise ExportError(
            f"weight {point.tensor!r}: integers minus zero_point leave INT8; "
            f"expected a symmetric weight at {point.bits} bits"
        )
    return Weight(
        point=point,
        integers=(centered + zero_point).astype(np.int16),
        zero_point=np.asarray(quantized.zero_point, np.int16),
        scale=np.asarray(scale, np.float32),
    )


def _check_weight(index: GraphIndex, quantized: QuantizedTensor) -> None:
    """Raise ExportError where the learned integers do not fit the model's weight or their own bits."""
    point, scale, integers = quantized.point, np.asarray(quantized.scale), quantized.integers
    where, weight = f"weight {point.tensor!r}", index.constant(point.tensor)
    if weight is None:
        raise ExportError(f"{where}: not an initializer; expected a constant; prepare the model first")
    if integers is None or integers.shape != weight.shape:
        found = "missing" if integers is None else f"of shape {list(integers.shape)}"
        raise ExportError(f"{where}: its integers are {found}; expected shape {list(weight.shape)}")
    expected = () if point.axis is None else (weight.shape[point.axis],)
    for what, array in (("scale", scale), ("zero_point", np.asarray(quantized.zero_point))):
        if array.shape != expected:
            raise ExportError(f"{where}: {what} has shape {list(array.shape)}; expected {list(expected)}")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ExportError(f"{where}: its scale is {scale.min()} somewhere; expected positive numbers")
    if integers.min(initial=0) < point.qmin or integers.max(initial=0) > point.qmax:
        raise ExportError(
            f"{where}: its integers span [{integers.min()}, {integers.max()}]; "
            f"expected [{point.qmin}, {point.qmax}], {point.bits} bits"
        )


def _gemm_factors(node: NodeProto) -> tuple[np.float32, np.float32]:
    """The factors alpha and beta, 1 for all but Gemm. Raises ExportError for an alpha that is no scale."""
    if node.op_type != "Gemm":
        return np.float32(1), np.float32(1)
    alpha, beta = (np.float32(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    if not alpha > 0:
        raise ExportError(f"{describe(node)}: alpha is {alpha}; expected more than 0; skip this layer")
    return alpha, beta
