"""All passes together, on small networks and on real ones."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from pdq_export import calib_data
from pdq_export.graph.load import load_model
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import PreparedModel, at_opset, prepare

from .models import assert_same, build, node, norm_constants, operators, random

NORM = "n.g n.b n.m n.v"


def residual_network(opset: int = 17) -> onnx.ModelProto:
    return build(
        [
            node("Conv", "x w1", "c1"),
            node("BatchNormalization", f"c1 {NORM}", "n1"),
            node("Relu", "n1", "r1"),
            node("Conv", "r1 w2", "c2"),
            node("BatchNormalization", "c2 m.g m.b m.m m.v", "n2", "second"),
            node("Add", "n2 r1", "a"),
            node("Relu", "a", "r2"),
            node("GlobalAveragePool", "r2", "p"),
            node("Flatten", "p", "f"),
            node("MatMul", "f w3", "g"),
            node("Add", "g b3", "y"),
        ],
        inputs={"x": ["batch", 3, 8, 8]},
        outputs={"y": ["batch", 5]},
        constants={
            "w1": random(4, 3, 3, 3),
            "w2": random(4, 4, 1, 1),
            "w3": random(4, 5),
            "b3": random(5),
            **norm_constants(4),
            **norm_constants(4, "m", seed=3),
        },
        opset=opset,
    )


def assert_prepared(prepared: PreparedModel) -> None:
    """What every later stage relies on."""
    graph = prepared.model.graph
    names = [n.name for n in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert {"Constant", "BatchNormalization", "Identity"}.isdisjoint(n.op_type for n in graph.node)
    index = GraphIndex(prepared.model)
    for tensor, statistics in prepared.statistics.items():
        layer = index.producer[tensor]
        assert layer.op_type in ("Conv", "ConvTranspose", "Gemm")
        channels = index.shape(tensor)[1]
        for value in (statistics.mean, statistics.std, statistics.gain):
            assert value.shape == (channels,)
            assert np.isfinite(value).all()
        assert (statistics.std >= 0).all()
        assert (statistics.gain >= 0).all()
    inner = {name for n in graph.node for name in n.output if name}
    assert all(index.shape(name) is not None for name in inner)
    read = {name for n in graph.node for name in n.input}
    assert set(index.initializers) <= read


@pytest.mark.parametrize("opset", [None, 17, 21, 25])
@pytest.mark.parametrize("original", [9, 13, 17])
def test_a_residual_network(original: int, opset: int | None) -> None:
    model = residual_network(original)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    before = model.SerializeToString()
    prepared = prepare(model, opset=opset)
    assert model.SerializeToString() == before
    kept = operators(prepared.model)
    assert kept.pop("Flatten", 0) + kept.pop("Reshape", 0) == 1
    assert kept == {"Conv": 2, "Relu": 2, "Add": 1, "GlobalAveragePool": 1, "Gemm": 1}
    assert set(prepared.statistics) == {"n1", "n2"}
    assert GraphIndex(prepared.model).opset == max(original, opset or 0)
    assert (prepared.model.graph.input, prepared.model.graph.output) == (model.graph.input, model.graph.output)
    assert_prepared(prepared)
    assert_same(model, prepared.model, x=random(2, 3, 8, 8))


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (prepare(residual_network(), opset=21).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_preparing_twice_changes_nothing() -> None:
    once = prepare(residual_network()).model
    again = prepare(once).model
    assert again.graph.node == once.graph.node
    assert [t.name for t in again.graph.initializer] == [t.name for t in once.graph.initializer]


def test_hard_sigmoid_after_a_layer_is_not_taken_apart() -> None:
    model = build(
        [node("Conv", "x w", "c"), node("Add", "c k", "a"), node("Clip", "a lo hi", "d"), node("Div", "d hi", "y")],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 3, 4, 4]},
        constants={
            "w": random(3, 3, 1, 1),
            **{k: np.array(v, np.float32) for k, v in {"k": 3, "lo": 0, "hi": 6}.items()},
        },
    )
    prepared = prepare(model)
    assert operators(prepared.model) == {"Conv": 1, "HardSigmoid": 1}
    assert_same(model, prepared.model, x=random(1, 3, 4, 4))


REAL = {
    "resnet20_cifar10": (
        (2, 3, 32, 32),
        19,
        {"Conv": 19, "Relu": 19, "Add": 9, "Slice": 2, "Pad": 2, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1},
    ),
    "resnet20_cifar10_folded": (
        (2, 3, 32, 32),
        0,
        {"Conv": 19, "Relu": 19, "Add": 9, "Slice": 2, "Pad": 2, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1},
    ),
    "efficientnet_lite0_imagenet": (
        (1, 3, 224, 224),
        49,
        {"Conv": 49, "Clip": 33, "Add": 9, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1},
    ),
    "ch_ppocr_mobile_v2.0_cls_infer": (
        (2, 3, 48, 192),
        35,
        {
            "Conv": 53,
            "HardSigmoid": 27,
            "Mul": 27,
            "Relu": 15,
            "GlobalAveragePool": 10,
            "Add": 7,
            "MaxPool": 1,
            "Reshape": 1,
            "Gemm": 1,
            "Softmax": 1,
        },
    ),
    "ch_PP-OCRv4_det_infer": (
        (1, 3, 64, 96),
        3,
        {
            "Conv": 62,
            "HardSigmoid": 34,
            "Mul": 58,
            "Add": 35,
            "GlobalAveragePool": 10,
            "Relu": 12,
            "Resize": 6,
            "Concat": 1,
            "ConvTranspose": 2,
            "Sigmoid": 1,
        },
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_models(shared_models: Path, name: str) -> None:
    shape, statistics, expected = REAL[name]
    model = load_model(shared_models / f"{name}.onnx")
    prepared = prepare(model, opset=21)
    assert operators(prepared.model) == expected
    assert len(prepared.statistics) == statistics
    assert GraphIndex(prepared.model).opset == 21
    assert_prepared(prepared)
    for old, new in zip(model.graph.input, prepared.model.graph.input, strict=True):
        named = [[d.dim_param.strip("?") for d in v.type.tensor_type.shape.dim] for v in (old, new)]
        assert named[0] == named[1]
    feeds = {model.graph.input[0].name: random(*shape)}
    assert_same(model, prepared.model, rtol=1e-3, atol=1e-4, **feeds)


def test_statistics_of_a_real_model_are_those_of_its_file(shared_models: Path) -> None:
    model = load_model(shared_models / "resnet20_cifar10.onnx")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    prepared = prepare(model)
    norms = {n.output[0]: n for n in model.graph.node if n.op_type == "BatchNormalization"}
    assert set(prepared.statistics) == set(norms)
    for tensor, norm in norms.items():
        gamma, beta, _, variance = (constants[name] for name in norm.input[1:])
        epsilon = onnx.helper.get_node_attr_value(norm, "epsilon")
        found = prepared.statistics[tensor]
        np.testing.assert_array_equal(found.mean, beta)
        np.testing.assert_array_equal(found.std, np.abs(gamma))
        alive = np.abs(gamma) > 1e-6 * np.abs(gamma).max()
        np.testing.assert_allclose(
            found.gain[alive], np.sqrt(variance + epsilon)[alive] / np.abs(gamma)[alive], rtol=1e-5
        )


def test_raising_a_prepared_model_is_preparing_a_raised_one() -> None:
    model = onnx.load(calib_data.path("fashion_resnet.onnx"))
    for opset in (13, 21, 25):
        raised, whole = at_opset(prepare(model), opset), prepare(model, opset=opset)
        assert raised.model == whole.model
        assert raised.statistics.keys() == whole.statistics.keys()
