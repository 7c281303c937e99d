"""Weights and biases as chains of constant nodes, which runtimes fold when they load the file.

unpacked (ort): whatever becomes INT8 less the zero point -> DequantizeLinear with zero_point 0, the runtime's fast
kernel: bytes and tables (`pdq_export.export.unpacking`), UINT2 and UINT4 -> Cast to INT8 -> Sub of the zero point, or
INT8 as it is. textbook: integers [-> Clip] -> DequantizeLinear with their zero_point.
bias: INT32 -> DequantizeLinear with scale = input scale * weight scale and zero_point 0. Where it saves more than the
nodes take, ort stores zero points and biases in fewer bits before a Cast, and multiplies the scales in the graph: in a
wide network of 2 bits, what there is of one number a channel is a twentieth of the file.

Every layer has DequantizeLinear nodes of its own, also where layers share a weight and with it all that is before:
of one with several readers onnxruntime makes several, and 1.15 leaves their axis out.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from pdq_export.export.constants import Bias, LayerConstants, Weight
from pdq_export.export.storage import packed_tensor
from pdq_export.export.writer import NODE_BYTES, GraphWriter

WriteWeight = Callable[[GraphWriter, Weight], list[str]]
"""Writes all of a weight but its DequantizeLinear, whose inputs it returns: integers, scale and zero_point."""


class ConstantsWriter(Protocol):
    """Writes the constants of layers in the way of a layout."""

    def constants(self, constants: LayerConstants, input_scale: tuple[str, np.float32] | None) -> dict[str, str]:
        """As `LayerWriter.constants`."""


class LayerWriter:
    """Writes the constants of layers; layers that share a weight share all of its chain but the DequantizeLinear.

    ``packs``: whether biases are stored in as few bytes as can be unpacked again. ``form``: see `layouts.FORM`.
    """

    def __init__(self, out: GraphWriter, write_weight: WriteWeight, *, packs: bool, form: int) -> None:
        self._out, self._write_weight, self._packs, self._form = out, write_weight, packs, form
        self._weights: dict[tuple[str, bytes], list[str]] = {}
        self._floats: dict[tuple[str, bytes], str] = {}  # by weight, its last

    def constants(self, constants: LayerConstants, input_scale: tuple[str, np.float32] | None) -> dict[str, str]:
        """Write the weight and bias of a layer. Returns their new float names by the old ones.

        ``input_scale``: name and value of the scale of the layer's input, if that is quantized.
        """
        weight = constants.weight
        if weight.key not in self._weights:
            self._weights[weight.key] = self._write_weight(self._out, weight)
        inputs = self._weights[weight.key]
        if self._form > 3 or weight.key not in self._floats:
            self._floats[weight.key] = _dequantize(self._out, weight, inputs)
        names = {weight.point.tensor: self._floats[weight.key]}
        if constants.bias is not None:
            scale = self._bias_scale(constants.bias, weight, inputs[1], input_scale)
            inputs = [self._bias_integers(constants.bias), scale]
            if self._form > 2:  # onnxruntime's own format cannot hold the fused node without it
                inputs.append(self._out.zeros(constants.bias.scale.shape, np.int32))
            name = constants.bias.tensor
            names[name] = self._out.node("DequantizeLinear", inputs, f"{name}_dequantized", axis=0)
        return names

    def _bias_integers(self, bias: Bias) -> str:
        name, values = f"{bias.tensor}_quantized", bias.integers
        largest = np.abs(values).max(initial=0)
        narrow = values.astype(next(kind for kind in (np.int8, np.int16, np.int32) if largest <= np.iinfo(kind).max))
        if not self._packs or values.nbytes - narrow.nbytes < NODE_BYTES:
            return self._out.constant(name, values)
        packed = onnx.numpy_helper.from_array(narrow, self._out.tensor_name(name))
        return _cast(self._out, packed, bias.tensor, TensorProto.INT32)

    def _bias_scale(
        self, bias: Bias, weight: Weight, weight_scale: str, input_scale: tuple[str, np.float32] | None
    ) -> str:
        name = f"{bias.tensor}_scale"
        if self._packs and input_scale is not None and bias.scale.nbytes >= NODE_BYTES:
            source, value = input_scale
            if np.array_equal(value * weight.scale, bias.scale):  # else one was raised, so that the bias fits
                return self._out.node("Mul", [source, weight_scale], name)
        return self._out.constant(name, bias.scale)


def _cast(out: GraphWriter, packed: TensorProto, name: str, to: int) -> str:
    kind = TensorProto.DataType.Name(to).lower()
    return out.node("Cast", [out.initializer(packed)], f"{name}_{kind}", to=to)


def typed_integers(out: GraphWriter, weight: Weight, bits: int) -> str:
    """Write the integers of a weight in a type of ``bits`` bits, 2, 4 or 8. Returns INT8 less the zero points."""
    point, name = weight.point, weight.point.tensor
    if bits == 8:
        return out.constant(f"{name}_quantized", weight.centered.astype(np.int8))
    packed = packed_tensor(out.tensor_name(f"{name}_quantized"), weight.integers, bits, signed=point.symmetric)
    tensor = _cast(out, packed, name, TensorProto.INT8)
    if weight.zero_point.any():
        tensor = out.node("Sub", [tensor, _packed_zero_point(out, weight, bits)], f"{name}_centered")
    return tensor


def unpacked_weight(out: GraphWriter, weight: Weight, integers: str, *, sole: bool) -> list[str]:
    """Write what dequantizes INT8 integers less their zero points, as `WriteWeight`.

    ``sole``: whether the zeros are this weight's alone. With session.x64quantprecision, onnxruntime replaces those of
    weights that leave -64 to 64: once each, or it fails.
    """
    # Without a zero_point that is written out, onnxruntime leaves Gemm and MatMul in float.
    scale = out.constant(f"{weight.point.tensor}_scale", weight.scale)
    zeros = out.sole_zeros if sole else out.zeros
    return [integers, scale, zeros(weight.scale.shape)]


def _packed_zero_point(out: GraphWriter, weight: Weight, bits: int) -> str:
    name, values = f"{weight.point.tensor}_zero_point", weight.along_axis(weight.zero_point)
    if values.size * (8 - bits) // 8 < NODE_BYTES:
        return out.constant(name, values.astype(np.int8))
    packed = packed_tensor(out.tensor_name(name), values, bits, signed=weight.point.symmetric)
    return _cast(out, packed, name, TensorProto.INT8)


def textbook_weight(out: GraphWriter, weight: Weight, bits: int, *, clip: bool) -> list[str]:
    """Write a weight as integers with a zero_point of the same type, of ``bits`` bits, as `WriteWeight`.

    ``clip``: a Clip to the learned bits says how many of the container's are used.
    """
    point, name = weight.point, weight.point.tensor
    inputs = _integers_and_zero_point(out, weight, bits, weight.integers, weight.zero_point, signed=point.symmetric)
    if clip and point.bits < bits:
        inputs[0] = _clipped(out, name, inputs[0], (point.qmin, point.qmax), bits, signed=point.symmetric)
    return [inputs[0], out.constant(f"{name}_scale", weight.scale), inputs[1]]


def centered_weight(out: GraphWriter, weight: Weight) -> list[str]:
    """Write an asymmetric weight as INT8 less its zero points, clipped to what b bits less those can be.

    As `WriteWeight`.
    """
    point, name = weight.point, weight.point.tensor
    zeros = np.zeros_like(weight.zero_point)
    integers, zero_point = _integers_and_zero_point(out, weight, 8, weight.centered, zeros, signed=True)
    bounds = (point.qmin - int(weight.zero_point.max()), point.qmax - int(weight.zero_point.min()))
    integers = _clipped(out, name, integers, bounds, 8, signed=True)
    return [integers, out.constant(f"{name}_scale", weight.scale), zero_point]


def _integers_and_zero_point(
    out: GraphWriter,
    weight: Weight,
    bits: int,
    integers: NDArray[np.int16],
    zero_point: NDArray[np.int16],
    *,
    signed: bool,
) -> list[str]:
    return [
        out.initializer(packed_tensor(out.tensor_name(f"{weight.point.tensor}_{what}"), values, bits, signed=signed))
        for what, values in (("quantized", integers), ("zero_point", zero_point))
    ]


def _clipped(out: GraphWriter, name: str, integers: str, bounds: tuple[int, int], bits: int, *, signed: bool) -> str:
    return out.node("Clip", [integers, *(out.integer(b, bits, signed=signed) for b in bounds)], f"{name}_clipped")


def _dequantize(out: GraphWriter, weight: Weight, inputs: list[str]) -> str:
    name, axis = weight.point.tensor, weight.point.axis
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return out.node("DequantizeLinear", inputs, f"{name}_dequantized", **attributes)


def float_inputs(out: GraphWriter, node: NodeProto, inputs: Sequence[str], position: int) -> list[str]:
    """The inputs of a node that is to stay in float although some of them come dequantized.

    ``position``: of one that does. Others need not be float tensors, such as the condition of a Where.

    Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime takes an integer kernel if it has one, and even
    quantizes a float weight by itself, to 8 bits from its range. A Sum of one tensor, which computes nothing and is not
    optimized away, keeps it from that.
    """
    data = inputs[position]
    floating = out.node("Sum", [data], f"{data}_float", name=f"{node.name}/Sum")
    return [*inputs[:position], floating, *inputs[position + 1 :]]


def without_folded_factors(node: NodeProto, constants: LayerConstants) -> None:
    """Remove alpha and beta from a copied Gemm, whose scales and integers hold them."""
    if node.op_type == "Gemm":
        folded = {"alpha"} if constants.bias is None else {"alpha", "beta"}
        kept = [item for item in node.attribute if item.name not in folded]
        del node.attribute[:]
        node.attribute.extend(kept)
