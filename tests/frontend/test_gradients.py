"""Gradients of every differentiable operator of the table, against finite differences in float64."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pdq_export.frontend import import_model, supported_operators

from .models import Array, one_node

RNG = np.random.default_rng(0)
Case = tuple[str, int, Sequence[Array | None], Mapping[str, Any], int]  # operator, opset, inputs, attributes, outputs

# Piecewise constant, or of whole numbers, truth values and shapes.
WITHOUT_GRADIENT = {
    *("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"),
    *("ArgMax", "ArgMin", "Floor", "Ceil", "Round", "Sign"),
    *("Shape", "Size", "Constant", "ConstantOfShape", "Range"),
}


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


def parameters() -> list[Any]:
    return [pytest.param(found, id=f"{found[0]}-{number}") for number, found in enumerate(cases())]


@pytest.mark.parametrize("found", parameters())
def test_gradient(found: Case) -> None:
    op_type, opset, inputs, attributes, outputs = found
    # Everything in float64 is an input whose gradient is checked; other types are parameters.
    fixed = [i for i, value in enumerate(inputs) if value is not None and value.dtype != np.float64]
    module = import_model(one_node(op_type, inputs, opset, attributes, outputs=outputs, constants=fixed))
    tensors = [torch.from_numpy(value.copy()) for value in inputs if value is not None and value.dtype == np.float64]
    # Running statistics and a type donor have no gradient in any framework.
    frozen = {"BatchNormalization": (3, 4), "CastLike": (1,)}.get(op_type, ())
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index not in frozen)

    def differentiable(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(result for result in module(*values) if result.is_floating_point())

    assert all(result.requires_grad for result in differentiable(*tensors))
    assert torch.autograd.gradcheck(differentiable, tensors)


def test_weights_that_are_constants_get_gradients() -> None:
    """A pass may turn a buffer into something that is learned: it is read by the graph, not baked into it."""
    inputs = [f64(2, 3, 5, 5), f64(4, 3, 3, 3), f64(4)]
    module = import_model(one_node("Conv", inputs, 19, constants=(1, 2)))
    buffers = dict(module.named_buffers())
    for name in buffers:
        setattr(module, name, buffers[name].requires_grad_())
    module(torch.from_numpy(inputs[0]))[0].sum().backward()
    assert all(getattr(module, name).grad is not None for name in buffers)


def test_every_operator_is_checked_or_has_no_gradient() -> None:
    checked = {found[0] for found in cases()}
    assert checked.isdisjoint(WITHOUT_GRADIENT)
    assert checked | WITHOUT_GRADIENT == set(supported_operators())
