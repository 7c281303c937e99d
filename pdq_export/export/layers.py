"""Weights and biases as chains of constant nodes, which runtimes fold when they load the file.

packed (ort): integers of few bits -> Cast to INT8 -> Sub of the zero point -> DequantizeLinear; the runtime sees INT8
with zero_point 0, its fast kernel. textbook: integers [-> Clip] -> DequantizeLinear with their zero_point.
bias: INT32 -> DequantizeLinear with scale = input scale * weight scale.
"""

from collections.abc import Callable, Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from pdq_export.export.constants import Bias, LayerConstants, Weight
from pdq_export.export.storage import packed_tensor, storage_bits
from pdq_export.export.writer import GraphWriter

WriteWeight = Callable[[GraphWriter, Weight], str]


class LayerWriter:
    """Writes the constants of layers; layers that share a weight share its chain."""

    def __init__(self, out: GraphWriter, write_weight: WriteWeight) -> None:
        self._out, self._write_weight = out, write_weight
        self._weights: dict[tuple[str, bytes], str] = {}

    def constants(self, constants: LayerConstants) -> dict[str, str]:
        """Write the weight and bias of a layer. Returns their new float names by the old ones."""
        weight = constants.weight
        key = (weight.point.tensor, weight.scale.tobytes())
        if key not in self._weights:
            self._weights[key] = self._write_weight(self._out, weight)
        names = {weight.point.tensor: self._weights[key]}
        if constants.bias is not None:
            names[constants.bias.tensor] = self._bias(constants.bias)
        return names

    def _bias(self, bias: Bias) -> str:
        name = bias.tensor
        inputs = [
            self._out.constant(f"{name}_quantized", bias.integers),
            self._out.constant(f"{name}_scale", bias.scale),
        ]
        return self._out.node(
            "DequantizeLinear", inputs, f"{name}_dequantized", name=f"{name}/DequantizeLinear", axis=0
        )


def packed_weight(out: GraphWriter, weight: Weight, opset: int) -> str:
    """Write a weight as few bits that become INT8 with zero_point 0. Returns the name of its float."""
    point, name = weight.point, weight.point.tensor
    bits = storage_bits(point.bits, opset)
    if bits == 8:
        tensor = out.constant(f"{name}_quantized", weight.centered.astype(np.int8))
    else:
        packed = packed_tensor(out.tensor_name(f"{name}_quantized"), weight.integers, bits, signed=point.symmetric)
        inputs = [out.initializer(packed)]
        tensor = out.node("Cast", inputs, f"{name}_int8", name=f"{name}/Cast", to=TensorProto.INT8)
        if weight.zero_point.any():
            zero_point = weight.along_axis(weight.zero_point).astype(np.int8)
            inputs = [tensor, out.constant(f"{name}_zero_point", zero_point)]
            tensor = out.node("Sub", inputs, f"{name}_centered", name=f"{name}/Sub")
    # Without a zero_point that is written out, onnxruntime leaves Gemm and MatMul in float.
    scale = out.constant(f"{name}_scale", weight.scale)
    return _dequantize(out, weight, [tensor, scale, out.zeros(weight.scale.shape)])


def textbook_weight(out: GraphWriter, weight: Weight, bits: int, *, clip: bool) -> str:
    """Write a weight as integers with a zero_point of the same type, of ``bits`` bits. Returns the name of its float.

    ``clip``: a Clip to the learned bits says how many of the container's are used.
    """
    point, name = weight.point, weight.point.tensor
    integers, zero_point = (
        out.initializer(packed_tensor(out.tensor_name(f"{name}_{what}"), values, bits, signed=point.symmetric))
        for what, values in (("quantized", weight.integers), ("zero_point", weight.zero_point))
    )
    if clip and point.bits < bits:
        bounds = [out.integer(bound, bits, signed=point.symmetric) for bound in (point.qmin, point.qmax)]
        integers = out.node("Clip", [integers, *bounds], f"{name}_clipped", name=f"{name}/Clip")
    return _dequantize(out, weight, [integers, out.constant(f"{name}_scale", weight.scale), zero_point])


def _dequantize(out: GraphWriter, weight: Weight, inputs: list[str]) -> str:
    name, axis = weight.point.tensor, {} if weight.point.axis is None else {"axis": weight.point.axis}
    return out.node("DequantizeLinear", inputs, f"{name}_dequantized", name=f"{name}/DequantizeLinear", **axis)


def float_inputs(out: GraphWriter, node: NodeProto, inputs: Sequence[str]) -> list[str]:
    """The inputs of a layer that is to stay in float, whose data come dequantized.

    Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime quantizes a float weight by itself, to 8 bits from its
    range. A Sum of one tensor, which computes nothing and is not optimized away, keeps it from that.
    """
    data = out.node("Sum", [inputs[0]], f"{inputs[0]}_float", name=f"{node.name}/Sum")
    return [data, *inputs[1:]]


def without_folded_factors(node: NodeProto, constants: LayerConstants) -> None:
    """Remove from a copied Gemm the alpha and beta that are in its scales and integers."""
    if node.op_type == "Gemm":
        folded = {"alpha"} if constants.bias is None else {"alpha", "beta"}
        kept = [item for item in node.attribute if item.name not in folded]
        del node.attribute[:]
        node.attribute.extend(kept)
