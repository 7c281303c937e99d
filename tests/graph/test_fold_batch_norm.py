import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdq_export.errors import ModelError
from pdq_export.graph.passes import fold_batch_norm

from .models import assert_same, build, node, norm_constants, operators, random, run

NORM = "n.g n.b n.m n.v"


def folded(model: onnx.ModelProto):
    copy = onnx.shape_inference.infer_shapes(model)
    return fold_batch_norm.run(copy)


def expected_statistics(constants, epsilon=1e-5):
    sigma = np.sqrt(constants["n.v"].astype(np.float64) + epsilon)
    return constants["n.b"], np.abs(constants["n.g"]), sigma / np.abs(constants["n.g"])


def assert_statistics(statistics, constants, epsilon=1e-5) -> None:
    wanted = expected_statistics(constants, epsilon)
    for found, value in zip((statistics.mean, statistics.std, statistics.gain), wanted, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, value, rtol=1e-6)


@settings(max_examples=25)
@given(
    transpose=st.booleans(),
    groups=st.integers(1, 3),
    into=st.integers(1, 3),
    out_of=st.integers(1, 3),
    spatial=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_convolutions_of_any_shape(transpose, groups, into, out_of, spatial, bias, seed) -> None:
    channels_in, channels_out = groups * into, groups * out_of
    rows = (channels_in, out_of) if transpose else (channels_out, into)
    constants = {"w": random(*rows, *[2] * spatial, seed=seed), **norm_constants(channels_out, seed=seed)}
    if bias:
        constants["b"] = random(channels_out, seed=seed)
    model = build(
        [
            node("ConvTranspose" if transpose else "Conv", "x w b" if bias else "x w", "c", group=groups),
            node("BatchNormalization", f"c {NORM}", "y", epsilon=1e-3),
        ],
        inputs={"x": ["N", channels_in, *[None] * spatial]},
        outputs={"y": ["N", channels_out, *[None] * spatial]},
        constants=constants,
    )
    result, statistics = folded(model)
    assert len(result.graph.node) == 1
    assert list(statistics) == ["y"]
    assert_statistics(statistics["y"], constants, epsilon=np.float32(1e-3))
    assert_same(model, result, atol=1e-4, x=random(2, channels_in, *[4] * spatial, seed=seed))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(), (3,), (1, 3), (1,), (2, 1)])
def test_gemm_with_alpha_and_beta(transposed, bias) -> None:
    constants = {"w": random(3, 5) if transposed else random(5, 3), "b": random(*bias), **norm_constants(3)}
    model = build(
        [
            node("Gemm", "x w b", "c", transB=transposed, alpha=0.5, beta=2.0),
            node("BatchNormalization", f"c {NORM}", "y"),
        ],
        inputs={"x": [2, 5]},
        outputs={"y": [2, 3]},
        constants=constants,
    )
    result, statistics = folded(model)
    assert operators(result) == {"Gemm": 1}
    assert_statistics(statistics["y"], constants)
    assert_same(model, result, x=random(2, 5))


def test_statistics_are_those_of_the_output_and_the_gain_leads_back() -> None:
    """With inputs for which mean and variance are true, the folded layer's output has exactly these statistics."""
    x, weight = random(64, 3, 8, 8), random(4, 3, 1, 1)
    z = np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]).astype(np.float64)
    constants = {
        "w": weight,
        **norm_constants(4),
        "n.m": z.mean((0, 2, 3)).astype(np.float32),
        "n.v": z.var((0, 2, 3)).astype(np.float32),
    }
    model = build(
        [node("Conv", "x w", "c"), node("BatchNormalization", f"c {NORM}", "y", epsilon=1e-12)],
        inputs={"x": [64, 3, 8, 8]},
        outputs={"y": [64, 4, 8, 8]},
        constants=constants,
    )
    result, statistics = folded(model)
    y = run(result, x=x)[0].astype(np.float64)
    np.testing.assert_allclose(y.mean((0, 2, 3)), statistics["y"].mean, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 2, 3)), statistics["y"].std, rtol=1e-4)
    np.testing.assert_allclose(statistics["y"].gain * statistics["y"].std, z.std((0, 2, 3)), rtol=1e-4)


def test_the_gain_of_a_dead_channel_is_zero() -> None:
    constants = {"w": random(3, 2, 1, 1), **norm_constants(3), "n.g": np.array([1, 0, -1e-8], np.float32)}
    model = build(
        [node("Conv", "x w", "c"), node("BatchNormalization", f"c {NORM}", "y")],
        inputs={"x": [1, 2, 4, 4]},
        outputs={"y": [1, 3, 4, 4]},
        constants=constants,
    )
    result, statistics = folded(model)
    assert statistics["y"].gain[0] > 0
    assert statistics["y"].gain[1:].tolist() == [0, 0]
    assert_same(model, result, x=random(1, 2, 4, 4))


def test_all_channels_dead() -> None:
    constants = {"w": random(3, 2, 1, 1), **norm_constants(3), "n.g": np.zeros(3, np.float32)}
    model = build(
        [node("Conv", "x w", "c"), node("BatchNormalization", f"c {NORM}", "y")],
        inputs={"x": [1, 2, 4, 4]},
        outputs={"y": [1, 3, 4, 4]},
        constants=constants,
    )
    assert folded(model)[1]["y"].gain.tolist() == [0, 0, 0]


def test_shared_weight_and_bias_are_copied() -> None:
    constants = {"w": random(3, 3, 1, 1), "b": random(3), **norm_constants(3), **norm_constants(3, "m", seed=7)}
    model = build(
        [
            node("Conv", "x w b", "c1"),
            node("BatchNormalization", f"c1 {NORM}", "y1"),
            node("Conv", "y1 w b", "c2"),
            node("BatchNormalization", "c2 m.g m.b m.m m.v", "y2"),
            node("Conv", "y2 w b", "y"),
        ],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 3, 4, 4]},
        constants=constants,
    )
    result, statistics = folded(model)
    assert operators(result) == {"Conv": 3}
    assert set(statistics) == {"y1", "y2"}
    assert len({n.input[1] for n in result.graph.node}) == 3
    assert_same(model, result, x=random(1, 3, 4, 4))


def test_a_bias_that_is_also_the_normalization_s_parameter() -> None:
    constants = {"w": random(3, 3, 1, 1), **norm_constants(3)}
    model = build(
        [node("Conv", "x w n.b", "c"), node("BatchNormalization", f"c {NORM}", "y")],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 3, 4, 4]},
        constants=constants,
    )
    assert_same(model, folded(model)[0], x=random(1, 3, 4, 4))


@pytest.mark.parametrize("spatial", [[], [5], [4, 4], [2, 3, 4]])
def test_without_a_layer_before_it_becomes_mul_and_add(spatial) -> None:
    model = build(
        [node("Relu", "x", "r"), node("BatchNormalization", f"r {NORM}", "y", "bn")],
        inputs={"x": ["N", 3, *spatial]},
        outputs={"y": ["N", 3, *spatial]},
        constants=norm_constants(3),
    )
    result, statistics = folded(model)
    assert operators(result) == {"Relu": 1, "Mul": 1, "Add": 1}
    assert statistics == {}
    assert_same(model, result, x=random(2, 3, *spatial))


@pytest.mark.parametrize("case", ["two readers", "graph output", "weight computed"])
def test_layers_that_cannot_take_it(case) -> None:
    nodes = [node("Conv", "x w", "c", "conv"), node("BatchNormalization", f"c {NORM}", "y", "bn")]
    inputs, outputs = {"x": [1, 3, 4, 4]}, {"y": [1, 3, 4, 4]}
    constants = {"w": random(3, 3, 1, 1), **norm_constants(3)}
    feeds = {"x": random(1, 3, 4, 4)}
    if case == "two readers":
        nodes.append(node("Relu", "c", "z"))
        outputs["z"] = [1, 3, 4, 4]
    elif case == "graph output":
        outputs["c"] = [1, 3, 4, 4]
    else:
        feeds["w"] = constants.pop("w")
        inputs["w"] = [3, 3, 1, 1]
    model = build(nodes, inputs=inputs, outputs=outputs, constants=constants)
    result, statistics = folded(model)
    assert statistics == {}
    assert operators(result)["Mul"] == 1
    assert_same(model, result, **feeds)


def test_training_mode_is_refused() -> None:
    model = build(
        [node("BatchNormalization", f"x {NORM}", "y rm rv", "bn", training_mode=1)],
        inputs={"x": [2, 3, 4, 4]},
        outputs={"y": [2, 3, 4, 4]},
        constants=norm_constants(3),
    )
    with pytest.raises(ModelError, match=r"node 'bn' \(BatchNormalization\): is in training mode"):
        folded(model)


def test_parameters_computed_at_run_time_are_refused() -> None:
    constants = norm_constants(3)
    del constants["n.m"]
    model = build(
        [node("BatchNormalization", f"x {NORM}", "y", "bn")],
        inputs={"x": [2, 3, 4, 4], "n.m": [3]},
        outputs={"y": [2, 3, 4, 4]},
        constants=constants,
    )
    with pytest.raises(ModelError, match=r"node 'bn'.*parameter 'n\.m' is computed at run time"):
        folded(model)


def test_negative_variance_is_refused() -> None:
    constants = {**norm_constants(3), "n.v": np.array([1, -1, 1], np.float32)}
    model = build(
        [node("BatchNormalization", f"x {NORM}", "y", "bn")],
        inputs={"x": [2, 3, 4, 4]},
        outputs={"y": [2, 3, 4, 4]},
        constants=constants,
    )
    with pytest.raises(ModelError, match=r"variance 'n\.v' plus epsilon is not positive in channel 1"):
        folded(model)


def test_parameters_of_different_shapes_are_refused() -> None:
    constants = {**norm_constants(3), "n.v": np.ones(2, np.float32)}
    model = build(
        [node("BatchNormalization", f"x {NORM}", "y", "bn")],
        inputs={"x": [2, 3, 4, 4]},
        outputs={"y": [2, 3, 4, 4]},
        constants=constants,
    )
    with pytest.raises(ModelError, match="expected four of shape"):
        fold_batch_norm.run(model)
