"""Files of integer operators (QLinearConv and its like) as the pairs of QuantizeLinear and DequantizeLinear they stand
for.

What an integer operator computes is its float operator between pairs, but for how it rounds. In that form a layer can
be given any input, quantized or not.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import NodeProto, helper

_MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Form:
    """``float_type``: the operator that it stands for. ``quantized``: positions of tensors that scale and zero_point
    follow; ``bias``: that of INT32 numbers in the product of the scales of the first two; ``output``: of the output's
    scale, which its zero_point follows. ``repeated``: from where on triples of tensor, scale, zero_point follow.
    """

    float_type: str
    quantized: tuple[int, ...]
    output: int
    bias: int | None = None
    repeated: int | None = None


_FORMS: Mapping[str, _Form] = {
    "QLinearConv": _Form(float_type="Conv", quantized=(0, 3), output=6, bias=8),
    "QLinearMatMul": _Form(float_type="MatMul", quantized=(0, 3), output=6),
    "QGemm": _Form(float_type="Gemm", quantized=(0, 3), output=7, bias=6),
    "QLinearAdd": _Form(float_type="Add", quantized=(0, 3), output=6),
    "QLinearMul": _Form(float_type="Mul", quantized=(0, 3), output=6),
    "QLinearSigmoid": _Form(float_type="Sigmoid", quantized=(0,), output=3),
    "QLinearLeakyRelu": _Form(float_type="LeakyRelu", quantized=(0,), output=3),
    "QLinearSoftmax": _Form(float_type="Softmax", quantized=(0,), output=3),
    "QLinearAveragePool": _Form(float_type="AveragePool", quantized=(0,), output=3),
    "QLinearGlobalAveragePool": _Form(float_type="GlobalAveragePool", quantized=(0,), output=3),
    "QLinearConcat": _Form(float_type="Concat", quantized=(), output=0, repeated=2),
}
_NOT_FLOAT = {"channels_last", "opset"}  # attributes that the float operators do not have


def as_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without integer operators that have a float one; the pair behind each writes the same integers.

    What it dequantizes to is named after these, with ``_dequantized`` behind it.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    for node in model.graph.node:
        form = _FORMS.get(node.op_type)
        made.graph.node.extend([node] if form is None or _last(node) else _written(node, form))
    return made


def _last(node: NodeProto) -> bool:
    """Whether the operator has images in another order than its float one."""
    return any(one.name == "channels_last" and one.i for one in node.attribute)


def _written(node: NodeProto, form: _Form) -> Iterator[NodeProto]:
    name = node.name or node.output[0]
    inputs: list[str] = []

    def dequantize(tensor: str, scale: str, zero_point: Sequence[str], axis: int) -> NodeProto:
        # The kernel has channels of weights in axis 0; of a matrix they are the columns.
        inputs.append(f"{name}/{tensor}_dequantized")
        given = [tensor, scale, *filter(None, zero_point)]
        return helper.make_node("DequantizeLinear", given, [inputs[-1]], axis=axis)

    positions = form.quantized
    if form.repeated is not None:
        positions = tuple(range(form.repeated, len(node.input), 3))
    for number, at in enumerate(positions):
        tensor, scale, *zero_point = node.input[at : at + 3]
        axis = _weight_axis(node, form) if number else 1
        yield dequantize(tensor, scale, zero_point, axis)
    if form.bias is not None and form.bias < len(node.input) and node.input[form.bias]:
        yield helper.make_node("Mul", [node.input[1], node.input[4]], [f"{name}/bias_scale"])
        yield dequantize(node.input[form.bias], f"{name}/bias_scale", (), 0)
    result = f"{name}/output"
    computes = helper.make_node(form.float_type, inputs, [result], name=name)
    computes.attribute.extend(one for one in node.attribute if one.name not in _NOT_FLOAT)
    yield computes
    ends = [part for part in node.input[form.output : form.output + 2] if part]
    if ends:
        yield helper.make_node("QuantizeLinear", [result, *ends], [node.output[0]])
        yield helper.make_node("DequantizeLinear", [node.output[0], *ends], [f"{node.output[0]}_dequantized"])
    else:  # QGemm without the output's scale gives floats
        computes.output[0] = node.output[0]


def _weight_axis(node: NodeProto, form: _Form) -> int:
    if form.float_type == "Conv":
        return 0
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return 0 if transposed else 1
