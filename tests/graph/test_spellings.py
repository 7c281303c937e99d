"""Operators that say the same are written alike, and compute the same in onnxruntime."""

import numpy as np
import onnx
import pytest

from pdq_export.graph.passes import fold_affine, spatial_mean, spellings, tidy
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths

from .models import assert_same, build, node, operators, random

CONSTANTS = """<float zero = {0}, float[1] half = {0.5}, float ratio = {0.5}, float six = {6}, float minus = {-1},
    float huge = {3.4028235e38}, float[1,1,1] slope = {0.2}, float[1,1,1,1,1] tall = {0}, bool off = {0}>"""
SAME = {
    "sum": ("y = Sum(x, z)", "y = Add(x, z)"),
    "sum of three": ("y = Sum(x, z, x)", "s = Add(x, z) y = Add(s, x)"),
    "sum of one": ("r = Relu(x) y = Sum(r)", "r = Relu(x) y = Identity(r)"),
    "mean": ("y = Mean(x, z)", "s = Add(x, z) y = Mul(s, six)"),
    "mean of three": ("y = Mean(x, z, x)", "s = Add(x, z) t = Add(s, x) y = Mul(t, six)"),
    "max with zero": ("y = Max(x, zero)", "y = Relu(x)"),
    "max with a number": ("y = Max(half, x)", "y = Clip(x, half)"),
    "min with a number": ("y = Min(x, six)", "y = Clip(x, zero, six)"),
    "max and min": ("m = Max(x, zero) y = Min(m, six)", "y = Clip(x, zero, six)"),
    "relu and min": ("m = Relu(x) y = Min(six, m)", "y = Clip(x, zero, six)"),
    "relu and clip": ("m = Relu(x) y = Clip(m, minus, six)", "y = Clip(x, zero, six)"),
    "clip without end": ("y = Clip(x, zero)", "y = Relu(x)"),
    "clip to the largest": ("y = Clip(x, zero, huge)", "y = Relu(x)"),
    "one slope": ("y = PRelu(x, slope)", "y = LeakyRelu<alpha = 0.2>(x)"),
    "no slope": ("y = LeakyRelu<alpha = 0.0>(x)", "y = Relu(x)"),
    "threshold zero": ("y = ThresholdedRelu<alpha = 0.0>(x)", "y = Relu(x)"),
    "dropout": ("y = Dropout(x, ratio)", "y = Identity(x)"),
    "dropout, mask unread": ("y, m = Dropout(x, ratio, off)", "y = Identity(x)"),
    "concat of one": ("y = Concat<axis = 1>(x)", "y = Identity(x)"),
}
OTHER = {
    "bound with axes": "y = Max(x, tall)",
    "two tensors": "y = Max(x, z)",
    "bounds that exclude each other": "m = Clip(x, half) y = Clip(m, minus, zero)",
    "a Relu that others read": "m = Relu(x) c = Clip(m, zero, six) y = Sub(m, c)",
    "no slope at 0.2": "y = LeakyRelu<alpha = 0.2>(x)",
    "mask": "d, m = Dropout(x, ratio) f = Cast<to = 1>(m) y = Mul(d, f)",
}


def model(body: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,4,3,3] x, float[1,4,3,1] z) => (float[N,4,3,3] y)'
        f" {CONSTANTS} {{ {body} }}"
    )


def data() -> dict[str, np.ndarray]:
    return {"x": 4 * random(2, 4, 3, 3), "z": random(1, 4, 3, 1)}


def rewritten(before: onnx.ModelProto) -> onnx.ModelProto:
    return spellings.run(onnx.ModelProto.FromString(before.SerializeToString()))


@pytest.mark.parametrize("case", SAME)
def test_one_spelling(case: str) -> None:
    body, canonical = SAME[case]
    before = model(body)
    for index, item in enumerate(before.graph.node):
        item.name = f"node{index}"
    result = rewritten(before)
    assert [n.op_type for n in result.graph.node] == [n.op_type for n in model(canonical).graph.node]
    assert result.graph.node[-1].name == before.graph.node[-1].name  # by which options and reports know it
    assert_same(before, result, **data())


@pytest.mark.parametrize("case", OTHER)
def test_what_says_something_else_stays(case: str) -> None:
    before = model(OTHER[case])
    result = rewritten(before)
    assert [n.op_type for n in result.graph.node] == [n.op_type for n in before.graph.node]


def test_swish_is_a_gate() -> None:
    assert operators(rewritten(model("y = Swish(x)", opset=24))) == {"Sigmoid": 1, "Mul": 1}
    assert operators(rewritten(model("y = Swish<alpha = 2.0>(x)", opset=24))) == {"Swish": 1}


@pytest.mark.parametrize("opset", [9, 10])
def test_bounds_as_attributes(opset: int) -> None:
    body = "r = Relu(x) m = Clip<min = -1.0, max = 6.0>(r) y = Clip<min = 0.0>(z)"
    text = (
        f'<ir_version: 5, opset_import: ["": {opset}]> g (float[N,4] x, float[N,4] z) => (float[N,4] m, float[N,4] y)'
    )
    before = onnx.parser.parse_model(f"{text} {{ {body} }}")
    result = rewritten(before)
    assert operators(result) == {"Clip": 1, "Relu": 1}
    assert_same(before, result, x=4 * random(2, 4), z=random(2, 4))


def test_a_mean_of_layers_costs_nothing() -> None:
    before = build(
        [node("Conv", "x v b", "p"), node("Conv", "x w", "q"), node("Mean", "p q", "m"), node("Relu", "m", "y")],
        inputs={"x": [2, 3, 4, 4]},
        outputs={"y": [2, 5, 4, 4]},
        constants={"v": random(5, 3, 1, 1), "w": random(5, 3, 1, 1, seed=1), "b": random(5)},
    )
    result, _ = fold_affine.run(tidy.infer_shapes(rewritten(before)), {})
    assert operators(result) == {"Conv": 2, "Add": 1, "Relu": 1}
    assert_same(before, result, x=random(2, 3, 4, 4))


def test_a_shared_operand_keeps_its_values() -> None:
    before = build(
        [node("Conv", "x v", "p"), node("Relu", "p", "r"), node("Conv", "r w", "q"), node("Mean", "p q", "y")],
        inputs={"x": [2, 3, 4, 4]},
        outputs={"y": [2, 3, 4, 4]},
        constants={"v": random(3, 3, 1, 1), "w": random(3, 3, 1, 1, seed=1)},
    )
    result, _ = fold_affine.run(tidy.infer_shapes(rewritten(before)), {})
    assert operators(result) == {"Conv": 2, "Relu": 1, "Add": 1, "Mul": 1}
    assert_same(before, result, x=random(2, 3, 4, 4))


def residual(merge: str) -> onnx.ModelProto:
    return build(
        [
            node("Conv", "x v", "a", "first", pads=[1, 1, 1, 1]),
            node("Relu", "a", "r"),
            node("Conv", "r w", "c", "second", pads=[1, 1, 1, 1]),
            node(merge, "c r", "s", "merge"),
            node("Relu", "s", "t"),
            node("GlobalAveragePool", "t", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f k", "y", "last"),
        ],
        inputs={"x": ["N", 3, 8, 8]},
        outputs={"y": ["N", 4]},
        constants={"v": random(8, 3, 3, 3), "w": random(8, 8, 3, 3), "k": random(8, 4)},
    )


def test_a_residual_sum_is_planned_like_an_addition() -> None:
    plans = [make_plan(prepare(residual(m)).model, PlanOptions.of(BitWidths(4, 4))) for m in ("Sum", "Add")]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("attributes", "whole"),
    [
        ({"kernel_shape": [4, 5]}, True),
        ({"kernel_shape": [4, 5], "strides": [4, 5], "auto_pad": "VALID", "count_include_pad": 1}, True),
        ({"kernel_shape": [4, 4]}, False),
        ({"kernel_shape": [4, 5], "pads": [0, 0, 0, 1]}, False),
        ({"kernel_shape": [4, 5], "auto_pad": "SAME_UPPER"}, False),
    ],
)
def test_a_window_as_large_as_the_map(attributes: dict, whole: bool) -> None:
    before = build(
        [node("AveragePool", "x", "y", "pool", **attributes)],
        inputs={"x": ["N", 3, 4, 5]},
        outputs={"y": ["N", 3, None, None]},
    )
    result = spatial_mean.run(tidy.infer_shapes(onnx.ModelProto.FromString(before.SerializeToString())))
    assert operators(result) == ({"GlobalAveragePool": 1} if whole else {"AveragePool": 1})
    assert_same(before, result, x=random(2, 3, 4, 5))


@pytest.mark.parametrize("opset", [9, 17, 20])
def test_the_maximum_of_a_channel_moves_integers(opset: int) -> None:
    before = build(
        [node("GlobalMaxPool", "x", "y", "pool")],
        inputs={"x": ["N", 3, None, None]},
        outputs={"y": ["N", 3, 1, 1]},
        opset=opset,
    )
    result = spatial_mean.run(tidy.infer_shapes(onnx.ModelProto.FromString(before.SerializeToString())))
    assert operators(result) == {"ReduceMax": 1}
    assert_same(before, result, x=random(2, 3, 4, 5))
