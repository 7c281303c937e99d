"""One small case or more for every differentiable operator: in float64 what can be learned, other types the rest."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from .models import Array, one_node

RNG = np.random.default_rng(0)
Case = tuple[str, int, Sequence[Array | None], Mapping[str, Any], int]  # operator, opset, inputs, attributes, outputs


def f64(*shape: int) -> Array:
    return RNG.normal(size=shape)


def positive(*shape: int) -> Array:
    return RNG.uniform(0.5, 2.0, size=shape)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def case(op_type: str, *inputs: Array | None, opset: int = 19, outputs: int = 1, **attributes: Any) -> Case:
    return op_type, opset, inputs, attributes, outputs


def cases() -> Iterator[Case]:
    yield from weighted_cases()
    yield from image_cases()
    yield from elementwise_cases()
    yield from shape_cases()
    yield from reduction_cases()


def weighted_cases() -> Iterator[Case]:
    x = f64(2, 4, 5, 4)
    yield case("Conv", x, f64(4, 2, 3, 3), f64(4), group=2, pads=[1, 1, 1, 1], strides=[2, 1])
    yield case("Conv", x, f64(2, 4, 2, 2), pads=[0, 1, 1, 0], dilations=[2, 1])
    yield case("Conv", f64(2, 2, 6), f64(3, 2, 3), f64(3), auto_pad="SAME_UPPER", strides=[2])
    yield case("Conv", f64(1, 2, 3, 3, 3), f64(2, 2, 2, 2, 2))
    yield case("ConvTranspose", x, f64(4, 2, 3, 3), f64(4), group=2, strides=[2, 2], pads=[1, 1, 1, 1])
    yield case("ConvTranspose", x, f64(4, 2, 3, 3), f64(2), strides=[2, 2], pads=[0, 1, 1, 0])
    yield case("Gemm", f64(3, 4), f64(5, 4), f64(5), transB=1)
    yield case("Gemm", f64(4, 3), f64(4, 5), f64(3, 1), transA=1, alpha=0.5, beta=1.5)
    yield case("MatMul", f64(2, 3, 4), f64(4, 2))
    yield case("Einsum", f64(2, 3), f64(3, 4), equation="ij,jk->ik")
    yield from recurrent_cases()


def recurrent_cases() -> Iterator[Case]:
    x = f64(3, 2, 4)
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for directions, name in ((1, "forward"), (1, "reverse"), (2, "bidirectional")):
            weights = f64(directions, gates * 3, 4), f64(directions, gates * 3, 3), f64(directions, gates * 6)
            lengths, state = np.array([3, 1], np.int32), f64(directions, 2, 3)
            states = [state, f64(directions, 2, 3), f64(directions, 9)] if kind == "LSTM" else [state]
            options = {"direction": name, "hidden_size": 3, "outputs": 3 if kind == "LSTM" else 2, "opset": 22}
            yield case(kind, x, *weights[:2], **options)
            yield case(kind, x, *weights, lengths, *states, **options)
        if kind == "GRU":
            yield case(kind, x, *weights, linear_before_reset=1, **options)


def image_cases() -> Iterator[Case]:
    x = f64(2, 4, 5, 4)
    yield case("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    yield case("MaxPool", x, kernel_shape=[2, 3], pads=[0, 2, 1, 0], dilations=[2, 1], ceil_mode=1)
    yield case("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    yield case("AveragePool", x, kernel_shape=[2, 3], pads=[0, 2, 1, 0], dilations=[2, 1], ceil_mode=1)
    yield case("LpPool", x, kernel_shape=[2, 2], p=2)
    yield case("GlobalAveragePool", x)
    yield case("GlobalMaxPool", x)
    yield case("GlobalLpPool", x, p=3)
    yield case("BatchNormalization", x, f64(4), f64(4), f64(4), positive(4))
    yield case("InstanceNormalization", x, f64(4), f64(4))
    yield case("GroupNormalization", x, f64(4), f64(4), num_groups=2, opset=21)
    yield case("LayerNormalization", x, f64(5, 4), f64(5, 4), axis=2)
    yield case("LayerNormalization", x, f64(4), axis=2, outputs=3)
    yield case("RMSNormalization", x, f64(4), axis=-1, opset=23)
    yield case("MeanVarianceNormalization", x)
    yield case("LpNormalization", x, axis=1)
    yield case("LRN", x, size=3, alpha=0.5)
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield case("Pad", x, i64(0, 0, 1, 2, 0, 0, -1, 2), mode=mode)
    for mode in ("nearest", "linear", "cubic"):
        for coordinates in ("half_pixel", "asymmetric", "align_corners"):
            sizes = i64(2, 4, 7, 3)
            yield case("Resize", x, None, None, sizes, mode=mode, coordinate_transformation_mode=coordinates)
    yield case("Upsample", x, np.array([1, 1, 2, 2], np.float32), mode="linear", opset=9)
    yield case("DepthToSpace", x, blocksize=2)
    yield case("SpaceToDepth", f64(1, 2, 4, 4), blocksize=2)


def elementwise_cases() -> Iterator[Case]:
    x, y = f64(3, 4), f64(4)
    yield case("Clip", x, np.array(-0.5), np.array(0.7))
    for name in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Softsign", "Mish", "Elu", "Selu", "Celu"):
        yield case(name, x * 2)
    yield case("LeakyRelu", x)
    yield case("PRelu", x, y)
    yield case("HardSigmoid", x * 3)
    yield case("ThresholdedRelu", x)
    yield case("Shrink", x, bias=0.1)
    yield case("Swish", x, alpha=0.7, opset=24)
    for approximate in ("none", "tanh"):
        yield case("Gelu", x, approximate=approximate, opset=20)
    for name in ("Softmax", "LogSoftmax"):
        yield case(name, x, axis=1)
        yield case(name, f64(2, 2, 3), axis=1, opset=11)
    for name in ("Exp", "Erf", "Abs", "Neg", "Sin", "Cos"):
        yield case(name, x)
    for name in ("Log", "Sqrt", "Reciprocal"):
        yield case(name, positive(3, 4))
    for name in ("Add", "Sub", "Mul", "Min", "Max", "Sum", "Mean"):
        yield case(name, x, y)
    yield case("Div", x, positive(4))
    yield case("Mod", positive(3, 4) + 3, positive(4), fmod=1)
    yield case("Pow", positive(3, 4), y)
    yield case("Pow", x, np.array(2.0, np.float32))
    yield case("Where", np.array([True, False, True, True]), x, y)
    yield case("Cast", x, to=11)
    yield case("CastLike", x, y)


def shape_cases() -> Iterator[Case]:
    x = f64(2, 3, 4)
    yield case("Slice", x, i64(2, 0), i64(-100, 3), i64(1, 2), i64(-1, 2))
    yield case("Concat", x, f64(2, 1, 4), axis=1)
    yield case("Split", x, i64(1, 2), axis=1, outputs=2)
    yield case("Reshape", x, i64(4, -1))
    yield case("Flatten", x)
    yield case("Transpose", x, perm=[1, 2, 0])
    yield case("Squeeze", f64(2, 1, 3), i64(1))
    yield case("Unsqueeze", x, i64(0, -1))
    yield case("Expand", f64(3, 1), i64(2, 3, 2))
    yield case("Tile", x, i64(1, 2, 1))
    yield case("Gather", x, np.array([[0, 2], [0, -1]], np.int64), axis=1)
    yield case("Gather", x, np.array(1, np.int64), axis=2)
    yield case("GatherElements", x, np.array([[[0, 1, 0, 0]]], np.int64), axis=1)
    yield case("GatherND", x, i64(1, -1).reshape(1, 2))
    yield case("TopK", x, i64(2), outputs=2)
    yield case("Identity", x)
    yield case("Dropout", x)
    yield case("Trilu", f64(3, 3))
    yield case("CumSum", x, np.array(1, np.int64), reverse=1)


def reduction_cases() -> Iterator[Case]:
    kinds = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    for kind in kinds:
        yield case(f"Reduce{kind}", positive(2, 3, 2), i64(0, 2))
        yield case(f"Reduce{kind}", positive(2, 3), opset=11, axes=[1], keepdims=0)


def model_of(found: Case) -> onnx.ModelProto:
    """The case as a model: float64 values are its inputs, all others its initializers."""
    op_type, opset, inputs, attributes, outputs = found
    fixed = [i for i, value in enumerate(inputs) if value is not None and value.dtype != np.float64]
    return one_node(op_type, inputs, opset, attributes, outputs=outputs, constants=fixed)


def inputs_of(found: Case) -> list[Array]:
    """What the model takes."""
    return [value for value in found[2] if value is not None and value.dtype == np.float64]
