"""Weights and biases as chains of nodes that the runtime folds when the session loads.

weight: packed integers -> Cast to INT8 -> Sub of the zero point -> DequantizeLinear; the runtime sees INT8
with zero_point 0, its fast kernel. bias: INT32 -> DequantizeLinear with scale = input scale * weight scale.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from pdq_export.errors import ExportError
from pdq_export.export.bias import (
    bias_integers,
    bias_scale,
    channel_bias,
    has_integer_bias,
    smallest_weight_scale,
)
from pdq_export.export.storage import packed_tensor, storage_bits
from pdq_export.export.writer import GraphWriter
from pdq_export.graph.lookup import GraphIndex, attribute, describe
from pdq_export.spec import Layer, Plan, QuantizedTensor, QuantizedTensors

INT8 = np.iinfo(np.int8)


class LayerWriter:
    """Writes the constants of layers; layers that share a weight share its chain."""

    def __init__(self, index: GraphIndex, out: GraphWriter, plan: Plan, tensors: QuantizedTensors) -> None:
        self.index, self.out, self.plan, self.tensors = index, out, plan, tensors
        self.weights: dict[tuple[str, bytes], str] = {}

    def constants(self, node: NodeProto, layer: Layer) -> dict[str, str]:
        """Write the quantized weight and bias of ``node``. Returns their new float names by the old ones."""
        if layer.weight not in self.plan.points:
            return {}
        weight, (alpha, beta) = self.tensors[layer.weight], _gemm_factors(node)
        learned = np.asarray(weight.scale, np.float32) * alpha
        bias = self._bias(layer)
        if bias is None or layer.bias is None:
            return {layer.weight: self._weight(weight, learned, learned)}
        input_scale = np.float32(self.tensors[self.plan.source(layer.input) or ""].scale)
        scale = np.maximum(learned, smallest_weight_scale(bias * beta, input_scale, learned))
        return {
            layer.weight: self._weight(weight, learned, scale),
            layer.bias: self._write_bias(layer.bias, bias * beta, input_scale, scale),
        }

    def _bias(self, layer: Layer) -> NDArray[np.float32] | None:
        """The bias as [C] where it is to be written as INT32; None where it stays float or there is none."""
        bias = self.index.constant(layer.bias)
        if bias is None or not has_integer_bias(self.plan, layer):
            return None
        return channel_bias(bias, self.tensors[layer.weight].scale)

    def _weight(self, quantized: QuantizedTensor, learned: NDArray[np.float32], scale: NDArray[np.float32]) -> str:
        key = (quantized.point.tensor, scale.tobytes())
        if key not in self.weights:
            shrink = _along_axis(quantized, (learned / scale).astype(np.float64))
            self.weights[key] = self._write_weight(quantized, shrink, scale)
        return self.weights[key]

    def _write_weight(self, quantized: QuantizedTensor, shrink: NDArray[np.float64], scale: NDArray[np.float32]) -> str:
        """``shrink`` is below 1 where a scale was enlarged; those integers move to the coarser grid."""
        point, name, out = quantized.point, quantized.point.tensor, self.out
        assert quantized.integers is not None
        zero_point = _along_axis(quantized, quantized.zero_point.astype(np.float64))
        centered = np.rint((quantized.integers - zero_point) * shrink)
        if max(abs(centered).max(initial=0), abs(zero_point).max()) > INT8.max:
            raise ExportError(
                f"weight {name!r}: integers minus zero_point leave INT8; "
                f"expected a symmetric weight at {point.bits} bits"
            )
        bits = storage_bits(point.bits, self.index.opset)
        if bits == 8:
            tensor = out.constant(f"{name}_quantized", centered.astype(np.int8))
        else:
            integers = (centered + zero_point).astype(np.int16)
            packed = packed_tensor(out.tensor_name(f"{name}_quantized"), integers, bits, signed=point.symmetric)
            inputs = [out.initializer(packed)]
            tensor = out.node("Cast", inputs, f"{name}_int8", name=f"{name}/Cast", to=TensorProto.INT8)
            if zero_point.any():
                inputs = [tensor, out.constant(f"{name}_zero_point", zero_point.astype(np.int8))]
                tensor = out.node("Sub", inputs, f"{name}_centered", name=f"{name}/Sub")
        # Without a zero_point that is written out, onnxruntime leaves Gemm and MatMul in float.
        inputs = [tensor, out.constant(f"{name}_scale", scale), out.zeros(scale.shape)]
        axis = {} if point.axis is None else {"axis": point.axis}
        return out.node("DequantizeLinear", inputs, f"{name}_dequantized", name=f"{name}/DequantizeLinear", **axis)

    def _write_bias(
        self, name: str, bias: NDArray[np.float32], input_scale: np.float32, weight_scale: NDArray[np.float32]
    ) -> str:
        integers = self.out.constant(f"{name}_quantized", bias_integers(bias, input_scale, weight_scale))
        inputs = [integers, self.out.constant(f"{name}_scale", bias_scale(bias, input_scale, weight_scale))]
        return self.out.node("DequantizeLinear", inputs, f"{name}_dequantized", name=f"{name}/DequantizeLinear", axis=0)


def float_inputs(out: GraphWriter, node: NodeProto, inputs: Sequence[str]) -> list[str]:
    """The inputs of a layer that is to stay in float, whose data come dequantized.

    Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime quantizes a float weight by itself, to 8 bits from its
    range. A Sum of one tensor, which computes nothing and is not optimized away, keeps it from that.
    """
    data = out.node("Sum", [inputs[0]], f"{inputs[0]}_float", name=f"{node.name}/Sum")
    return [data, *inputs[1:]]


def without_folded_factors(node: NodeProto, layer: Layer, constants: dict[str, str]) -> None:
    """Remove from a copied Gemm the alpha and beta that `LayerWriter.constants` put into the scales."""
    folded = {name for name, tensor in (("alpha", layer.weight), ("beta", layer.bias)) if tensor in constants}
    if node.op_type == "Gemm" and folded:
        kept = [item for item in node.attribute if item.name not in folded]
        del node.attribute[:]
        node.attribute.extend(kept)


def check_weight(index: GraphIndex, quantized: QuantizedTensor) -> None:
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


def _along_axis(quantized: QuantizedTensor, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[] or [C] as [1, .., C, .., 1], ready to broadcast against the weight."""
    assert quantized.integers is not None
    shape = [1] * quantized.integers.ndim
    if quantized.point.axis is not None:
        shape[quantized.point.axis] = values.size
    return values.reshape(shape)


def _gemm_factors(node: NodeProto) -> tuple[np.float32, np.float32]:
    """The factors alpha and beta, 1 for all but Gemm. Raises ExportError for an alpha that is no scale."""
    if node.op_type != "Gemm":
        return np.float32(1), np.float32(1)
    alpha, beta = (np.float32(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    if not alpha > 0:
        raise ExportError(f"{describe(node)}: alpha is {alpha}; expected more than 0; skip this layer")
    return alpha, beta
