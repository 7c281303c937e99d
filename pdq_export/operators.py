"""What an operator is, by ONNX op type: the one place that says so.

What depends on attributes or inputs as well is asked of nodes, by functions that begin here (`plan.nodes`). What
one module does with an operator (a converter, a spelling, a rule for an axis) stays there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

QONNX_DOMAIN = "qonnx.custom_op.general"  # of its Quant nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """Properties of an operator of ONNX, or of one that onnxruntime's optimization makes; all False where unknown.

    Layers:
        weighted: multiplies its first input by its second, which is a weight where that is constant.
        takes_bias: its third input is a bias, a number for each output channel.
        kernel: it is a layer in a graph that onnxruntime has optimized, which computes in floats or in integers.
        operands: positions of the tensors that a kernel multiplies; it is a layer only where one of them is constant.
    Integers:
        integer_kernel: between DequantizeLinear and QuantizeLinear, onnxruntime computes it in integers.
        float_output: its integer kernel gives floats as well, at no cost.
        moves: every element of an output is one of an input, or 0, where attributes do not say otherwise
            (`plan.nodes.is_passthrough`); onnxruntime moves UINT8 as well.
        rearranges: moves every element, each to one place.
        averages: its outputs are means of inputs, so that they need a scale of their own, but no learned one.
        quantized: only quantized models have it.
    Functions:
        activation: a function of one tensor, element by element.
        homogeneous: an activation with f(a x) = a f(x) for a > 0.
        nonnegative: has no negative results.
        bounded: has no results below -1 or above 1.
        merges: binary, linear in its first operand; both operands may be data, as where a branch of a network ends.
        pools: makes one number of a channel, or can; so gates (squeeze and excitation, CBAM) see it.
        head: stands behind scores and keeps their order, or what there is of it in an index.
    Axes:
        reads_shape: reads no more of its input than its shape.
        per_image: reads axis 0 as images and another one as channels or positions.
        broadcasts: element by element, of operands that are broadcast to each other.
        recurrent: goes along an axis of time, with images along another.
    """

    weighted: bool = False
    takes_bias: bool = False
    kernel: Literal["float", "integer"] | None = None
    operands: tuple[int, ...] = ()
    integer_kernel: bool = False
    float_output: bool = False
    moves: bool = False
    rearranges: bool = False
    averages: bool = False
    quantized: bool = False
    activation: bool = False
    homogeneous: bool = False
    nonnegative: bool = False
    bounded: bool = False
    merges: bool = False
    pools: bool = False
    head: bool = False
    reads_shape: bool = False
    per_image: bool = False
    broadcasts: bool = False
    recurrent: bool = False


_UNKNOWN = Operator()
_ACTIVATION = Operator(activation=True)
_BROADCAST = Operator(broadcasts=True)
_MOVE = Operator(moves=True)
_REARRANGEMENT = Operator(moves=True, rearranges=True)
_PER_IMAGE = Operator(per_image=True)
_RECURRENT = Operator(recurrent=True, kernel="float")
_QUANTIZED = Operator(quantized=True)
_INTEGER_LAYER = Operator(quantized=True, kernel="integer")
_FLOAT_LAYER = Operator(kernel="float")
_INTEGER_PRODUCT = Operator(quantized=True, kernel="integer", operands=(0, 1))
_QDQ_PRODUCT = Operator(quantized=True, kernel="integer", operands=(0, 3))  # behind scale and zero point
_FLOAT_PRODUCT = Operator(kernel="float", operands=(0, 1))

OPERATORS: Mapping[str, Operator] = {
    "Conv": Operator(weighted=True, takes_bias=True, kernel="float", integer_kernel=True, per_image=True),
    "ConvTranspose": Operator(weighted=True, takes_bias=True, kernel="float", per_image=True),
    "Gemm": Operator(
        weighted=True, takes_bias=True, kernel="float", operands=(0, 1), integer_kernel=True, float_output=True
    ),
    "MatMul": Operator(weighted=True, kernel="float", operands=(0, 1), integer_kernel=True, float_output=True),
    # Moves
    "Concat": Operator(moves=True, integer_kernel=True),
    "Expand": _MOVE,
    "Gather": _MOVE,
    "MaxPool": Operator(moves=True, per_image=True),
    "Pad": _MOVE,
    "ReduceMax": Operator(moves=True, pools=True),
    "ReduceMin": _MOVE,
    "Resize": _MOVE,
    "Slice": _MOVE,
    "Split": _MOVE,
    "Tile": _MOVE,
    "DepthToSpace": Operator(moves=True, rearranges=True, per_image=True),
    "Flatten": _REARRANGEMENT,
    "Identity": Operator(moves=True, rearranges=True, head=True),
    "Reshape": _REARRANGEMENT,
    "SpaceToDepth": Operator(moves=True, rearranges=True, per_image=True),
    "Squeeze": _REARRANGEMENT,
    "Transpose": _REARRANGEMENT,
    "Unsqueeze": _REARRANGEMENT,
    # Activations
    "Celu": _ACTIVATION,
    "Clip": _ACTIVATION,
    "Elu": _ACTIVATION,
    "Gelu": _ACTIVATION,
    "HardSigmoid": Operator(activation=True, nonnegative=True, bounded=True),
    "HardSwish": _ACTIVATION,
    "LeakyRelu": Operator(activation=True, homogeneous=True, integer_kernel=True),
    "Mish": _ACTIVATION,
    "PRelu": Operator(activation=True, broadcasts=True),
    "Relu": Operator(activation=True, homogeneous=True, nonnegative=True),
    "Selu": _ACTIVATION,
    "Sigmoid": Operator(activation=True, nonnegative=True, bounded=True, integer_kernel=True),
    "Softplus": Operator(activation=True, nonnegative=True),
    "Softsign": Operator(activation=True, bounded=True),
    "Swish": _ACTIVATION,
    "Tanh": Operator(activation=True, bounded=True),
    "ThresholdedRelu": _ACTIVATION,
    # Functions of one tensor that networks do not use as activations
    "Abs": Operator(nonnegative=True),
    "Exp": Operator(nonnegative=True),
    "Sqrt": Operator(nonnegative=True),
    "ArgMax": Operator(head=True),
    "ArgMin": Operator(head=True),
    "Cast": Operator(head=True),
    "LogSoftmax": Operator(head=True),
    "Softmax": Operator(head=True, nonnegative=True, bounded=True, integer_kernel=True),
    # Functions of several tensors
    "Add": Operator(merges=True, broadcasts=True, integer_kernel=True),
    "Div": Operator(merges=True, broadcasts=True),
    "Mul": Operator(merges=True, broadcasts=True, integer_kernel=True),
    "Sub": Operator(merges=True, broadcasts=True),
    "And": _BROADCAST,
    "Equal": _BROADCAST,
    "Greater": _BROADCAST,
    "GreaterOrEqual": _BROADCAST,
    "Less": _BROADCAST,
    "LessOrEqual": _BROADCAST,
    "Max": _BROADCAST,
    "Mean": _BROADCAST,
    "Min": _BROADCAST,
    "Mod": _BROADCAST,
    "Or": _BROADCAST,
    "Pow": _BROADCAST,
    "Sum": _BROADCAST,
    "Where": _BROADCAST,
    "Xor": _BROADCAST,
    # Pools and normalizations
    "AveragePool": Operator(averages=True, pools=True, integer_kernel=True, per_image=True),
    "GlobalAveragePool": Operator(averages=True, pools=True, integer_kernel=True, per_image=True),
    "GlobalMaxPool": Operator(pools=True, per_image=True),
    "ReduceMean": Operator(pools=True),
    "BatchNormalization": _PER_IMAGE,
    "GlobalLpPool": _PER_IMAGE,
    "GridSample": _PER_IMAGE,
    "GroupNormalization": _PER_IMAGE,
    "InstanceNormalization": _PER_IMAGE,
    "LRN": _PER_IMAGE,
    "LpPool": _PER_IMAGE,
    # Sequences and sizes
    "GRU": _RECURRENT,
    "LSTM": _RECURRENT,
    "RNN": _RECURRENT,
    "Shape": Operator(reads_shape=True),
    "Size": Operator(reads_shape=True),
    # Quantized models, and what onnxruntime's optimization makes of layers
    "BipolarQuant": _QUANTIZED,
    "ConvInteger": _INTEGER_LAYER,
    "DequantizeLinear": _QUANTIZED,
    "DynamicQuantizeLSTM": _INTEGER_LAYER,
    "DynamicQuantizeLinear": _QUANTIZED,
    "DynamicQuantizeMatMul": _INTEGER_PRODUCT,
    "MatMulBnb4": _QUANTIZED,
    "MatMulInteger": _INTEGER_PRODUCT,
    "MatMulIntegerToFloat": _INTEGER_PRODUCT,
    "MatMulNBits": _QUANTIZED,
    "QAttention": _QUANTIZED,
    "QEmbedLayerNormalization": _QUANTIZED,
    "QGemm": _QDQ_PRODUCT,
    "QLinearConv": _INTEGER_LAYER,
    "QLinearMatMul": _QDQ_PRODUCT,
    "Quant": _QUANTIZED,
    "QuantizeLinear": _QUANTIZED,
    "ConvTransposeWithDynamicPads": _FLOAT_LAYER,
    "FusedConv": _FLOAT_LAYER,
    "FusedGemm": _FLOAT_PRODUCT,
    "FusedMatMul": _FLOAT_PRODUCT,
    "NhwcFusedConv": _FLOAT_LAYER,
}


def get(op_type: str) -> Operator:
    """The properties of an operator; none for one that the table does not have."""
    return OPERATORS.get(op_type, _UNKNOWN)
