import numpy as np
import onnx
import pytest

from pdq_export.graph.passes import fold_affine, fold_batch_norm

from .models import assert_same, build, node, norm_constants, operators, random


def folded(model: onnx.ModelProto, statistics=None):
    return fold_affine.run(onnx.shape_inference.infer_shapes(model), statistics or {})


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("constant_first", [False, True])
def test_constants_that_are_per_channel_vanish(shape, operator, constant_first) -> None:
    model = build(
        [
            node("Conv", "x w b", "c"),
            node(operator, "k c" if constant_first else "c k", "d"),
            node("Relu", "d", "y"),
        ],
        inputs={"x": [2, 2, 4, 4]},
        outputs={"y": [2, 3, 4, 4]},
        constants={"w": random(3, 2, 1, 1), "b": random(3), "k": np.asarray(random(*shape) + 3)},
    )
    result, _ = folded(model)
    kept = {operator: 1} if operator == "Div" and constant_first else {}
    assert operators(result) == {"Conv": 1, "Relu": 1, **kept}
    assert_same(model, result, x=random(2, 2, 4, 4))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1, 4), (2, 3, 1, 1), (1, 2, 3, 1, 1)])
def test_other_constants_stay(shape) -> None:
    model = build(
        [node("Conv", "x w", "c"), node("Add", "c k", "y")],
        inputs={"x": [2, 2, 4, 4]},
        outputs={"y": [*shape[:-4], 2, 3, 4, 4]},
        constants={"w": random(3, 2, 1, 1), "k": random(*shape)},
    )
    assert operators(folded(model)[0]) == {"Conv": 1, "Add": 1}


def test_division_by_zero_stays() -> None:
    model = build(
        [node("Conv", "x w", "c"), node("Div", "c k", "y")],
        inputs={"x": [2, 2, 4, 4]},
        outputs={"y": [2, 3, 4, 4]},
        constants={"w": random(3, 2, 1, 1), "k": np.array(0, np.float32)},
    )
    assert operators(folded(model)[0]) == {"Conv": 1, "Div": 1}


@pytest.mark.parametrize("shape", [(3,), (1, 3), ()])
def test_matmul_and_bias_become_gemm(shape) -> None:
    model = build(
        [node("MatMul", "x w", "c"), node("Add", "k c", "y")],
        inputs={"x": ["N", 5]},
        outputs={"y": ["N", 3]},
        constants={"w": random(5, 3), "k": random(*shape)},
    )
    result, _ = folded(model)
    assert operators(result) == {"Gemm": 1}
    assert_same(model, result, x=random(2, 5))


def test_matmul_of_rank_three_stays() -> None:
    model = build(
        [node("MatMul", "x w", "c"), node("Add", "c k", "y")],
        inputs={"x": ["N", 4, 5]},
        outputs={"y": ["N", 4, 3]},
        constants={"w": random(5, 3), "k": random(3)},
    )
    assert operators(folded(model)[0]) == {"MatMul": 1, "Add": 1}


def test_adding_a_bias_does_not_copy_a_shared_weight() -> None:
    model = build(
        [node("Conv", "x w", "c"), node("Add", "c k", "d"), node("Conv", "d w", "y")],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 3, 4, 4]},
        constants={"w": random(3, 3, 1, 1), "k": random(3, 1, 1)},
    )
    result, _ = folded(model)
    assert {n.input[1] for n in result.graph.node} == {"w"}
    assert_same(model, result, x=random(1, 3, 4, 4))


def test_statistics_follow() -> None:
    constants = {"w": random(3, 2, 1, 1), **norm_constants(3), "k": random(3, 1, 1, seed=5), "l": random(3, 1, 1)}
    model = build(
        [
            node("Conv", "x w", "c"),
            node("BatchNormalization", "c n.g n.b n.m n.v", "d"),
            node("Mul", "d k", "e"),
            node("Add", "e l", "y"),
        ],
        inputs={"x": [1, 2, 4, 4]},
        outputs={"y": [1, 3, 4, 4]},
        constants=constants,
    )
    normalized, before = fold_batch_norm.run(onnx.shape_inference.infer_shapes(model))
    result, after = folded(normalized, before)
    factor, offset = constants["k"].reshape(3), constants["l"].reshape(3)
    assert list(after) == ["y"]
    np.testing.assert_allclose(after["y"].mean, before["d"].mean * factor + offset, rtol=1e-5)
    np.testing.assert_allclose(after["y"].std, before["d"].std * np.abs(factor), rtol=1e-5)
    np.testing.assert_allclose(after["y"].gain * after["y"].std, before["d"].gain * before["d"].std, rtol=1e-5)
    assert_same(model, result, x=random(1, 2, 4, 4))
