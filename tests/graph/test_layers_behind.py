"""Dropout that drops nothing, and MatMul with a stack of one matrix: what hides a layer is taken away."""

import numpy as np
import onnx
import pytest

from pdq_export.graph.passes import spellings, stacked_weight, tidy
from pdq_export.graph.prepare import prepare

from ..onnx_text import fill, parse
from .models import assert_same, build, node, operators, random


def dropped(inputs: str = "r rate", outputs: str = "d", *, opset: int = 17, ends: str = "y") -> onnx.ModelProto:
    nodes = [node("Relu", "x", "r"), node("Dropout", inputs, outputs), node("Neg", "d", ends)]
    constants = {"rate": np.float32(0.5), "off": np.array(False), "on": np.array(True)}
    shapes = {"inputs": {"x": ["N", 4]}, "outputs": {"y": ["N", 4]}}
    if opset < 12:
        nodes[1] = node("Dropout", "r", outputs, ratio=0.3)
    return build(nodes, constants=constants, opset=opset, **shapes)


@pytest.mark.parametrize(
    ("model", "gone"),
    [
        (dropped(), True),
        (dropped(outputs="d mask"), True),
        (dropped("r rate off"), True),
        (dropped(opset=11), True),
        (dropped("r rate on"), False),
        (dropped("r rate off", "e d"), False),  # the mask is read
    ],
)
def test_dropout_is_identity(model: onnx.ModelProto, gone: bool) -> None:
    if not gone:
        assert operators(spellings.run(model))["Dropout"] == 1
        return
    before = onnx.ModelProto.FromString(model.SerializeToString())
    after = spellings.run(model)
    assert operators(after) == {"Relu": 1, "Identity": 1, "Neg": 1}
    assert_same(before, after, x=random(3, 4))


def test_dropout_at_an_output_keeps_its_name() -> None:
    model = build(
        [node("Conv", "x w", "c"), node("Dropout", "c rate", "y")],
        inputs={"x": ["N", 3, 4, 4]},
        outputs={"y": ["N", 2, 4, 4]},
        constants={"w": random(2, 3, 1, 1), "rate": np.float32(0.5)},
    )
    after = prepare(model).model
    assert "Dropout" not in operators(after)
    assert_same(model, after, x=random(2, 3, 4, 4))


def product(weight: np.ndarray, *shape: int | str, rank: int = 3) -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "x w", "b"), node("Add", "a b", "y")]
    return build(nodes, inputs={"x": list(shape)}, outputs={"y": ["N"] + ["?"] * (rank - 1)}, constants={"w": weight})


def test_a_stack_of_one_matrix_is_a_matrix() -> None:
    model = product(random(1, 4, 5), "N", 6, 4)
    before = onnx.ModelProto.FromString(model.SerializeToString())
    after = tidy.remove_unused(stacked_weight.run(tidy.infer_shapes(model)))
    assert [list(tensor.dims) for tensor in after.graph.initializer] == [[4, 5]]  # shared as before
    assert_same(before, after, x=random(2, 6, 4))


@pytest.mark.parametrize(
    ("weight", "shape", "rank"),
    [
        ((2, 4, 5), ("N", 2, 6, 4), 4),  # two matrices
        ((1, 4, 5), ("N", 4), 3),  # the result has an axis more than the first operand
        ((1, 1, 4, 5), ("N", 6, 4), 4),
    ],
)
def test_other_stacks_stay(weight: tuple[int, ...], shape: tuple[int | str, ...], rank: int) -> None:
    after = stacked_weight.run(tidy.infer_shapes(product(random(*weight), *shape, rank=rank)))
    assert [tuple(tensor.dims) for tensor in after.graph.initializer] == [weight]


def test_stacks_of_one_matrix_may_be_all_that_a_network_has() -> None:
    body = "a = MatMul(image, w) b = Relu(a) y = MatMul(b, w)"
    model = fill(parse(body, "float[N,6,8] image", "float[N,6,8] y"), {"w": (1, 8, 8)})
    prepared = prepare(model).model
    assert [list(tensor.dims) for tensor in prepared.graph.initializer] == [[8, 8]]
