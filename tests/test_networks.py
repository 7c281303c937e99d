"""Shapes of networks that users bring, each through the whole pipeline with a tiny budget."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pdq_export.commands.inspect import inspect_model
from pdq_export.commands.quantize import quantize

from .onnx_text import fill, parse

TINY = {"samples": 12, "iters": 6, "correction_iters": 2, "batch_size": 4}
P = "<pads = [1, 1, 1, 1]>"


def chain(count: int) -> str:
    return "\n".join(f"c{k} = Conv {P} (r{k - 1}, w) r{k} = Relu(c{k})" for k in range(1, count + 1))


SQUARE = dict.fromkeys(("w", "u", "w3"), (4, 4, 3, 3))
SHAPES = {
    "w0": (4, 3, 3, 3),
    **SQUARE,
    "k": (4, 8, 3, 3),
    "d": (4, 1, 3, 3),
    "v": (5, 4),
    "b": (4,),
    "v6": (4, 6),
    "x0": (4, 3, 3),
    "x1": (4, 4, 3),
}


def network(
    body: str, outputs: str = "float[N,K] y", scale: float = 1.0, inputs: str = "float[N,3,8,8] image"
) -> onnx.ModelProto:
    """``body`` from ``inputs`` to ``outputs``; the weights that it reads are random."""
    return fill(parse(body, inputs, outputs), SHAPES, scale=scale)


STEM = f"c0 = Conv {P} (image, w0) r0 = Relu(c0)"
GAP = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm <transB = 1> (f, v)"
IMAGE = "float[N,4,8,8] y"

NETWORKS = {
    "skip over more layers than a block": (f"{STEM} {chain(14)} s = Concat <axis = 1> (r14, r0) "
                                           f"y = Conv {P} (s, k)", IMAGE),
    "softmax head": (f"{STEM} z = Identity(r0) p = GlobalAveragePool(z) f = Flatten(p) "
                     "l = Gemm <transB = 1> (f, v) y = Softmax(l)", "float[N,K] y"),
    "argmax head": (f"{STEM} z = Identity(r0) p = GlobalAveragePool(z) f = Flatten(p) "
                    "l = Gemm <transB = 1> (f, v) y = ArgMax <axis = 1, keepdims = 0> (l)", "int64[N] y"),
    "argmax beside the logits": (f"{STEM} p = GlobalAveragePool(r0) f = Flatten(p) y = Gemm <transB = 1> (f, v) "
                                 "i = ArgMax <axis = 1, keepdims = 0> (y)", "float[N,K] y, int64[N] i"),
    "feature output behind a pool": (f"{STEM} m = MaxPool <kernel_shape = [2, 2]> (r0) y = Conv {P} (m, w)",
                                     "float[N,4,7,7] y, float[N,4,7,7] m"),
    "feature output that is read inside": (f"{STEM} y = Conv {P} (r0, w)", "float[N,4,8,8] y, float[N,4,8,8] r0"),
    "split with an outer output": (f"{STEM} a, e = Split <axis = 1> (r0) y = Conv {P} (r0, w)",
                                   "float[N,4,8,8] y, float[N,2,8,8] e"),
    "computed bias": (f"{STEM} g = GlobalAveragePool(r0) f = Flatten(g) y = Gemm <transB = 1> (f, v, f2) ".replace(
        "f2", "q") .replace("y = Gemm", "q = Gemm <transB = 1> (f, v) y = Gemm"), "float[N,K] y"),
    "squeeze and excitation": (f"{STEM} g = GlobalAveragePool(r0) h = Conv (g, e1) t = Sigmoid(h) m = Mul(r0, t) "
                               f"y = Conv {P} (m, w)".replace("Conv (g, e1)", f"Conv {P} (g, u)"), IMAGE),
    "two activations on one layer": (f"{STEM} c = Conv {P} (r0, u) a = Relu(c) s = Sigmoid(c) m = Mul(a, s) "
                                     f"y = Conv {P} (m, w)", IMAGE),
    "depthwise, ReLU6": (f"{STEM} lo = Constant <value_float = 0.0> () hi = Constant <value_float = 6.0> () "
                         f"c = Conv <pads = [1, 1, 1, 1], group = 4> (r0, d, b) z = Clip(c, lo, hi) {GAP}",
                         "float[N,K] y"),
    "hard swish, leaky relu": (f"{STEM} c = Conv {P} (r0, u) h = HardSwish(c) e = Conv {P} (h, w) z = LeakyRelu(e) "
                               f"{GAP}", "float[N,K] y"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", ["4/4", "2/2"])
def test_network_is_quantized_and_agrees_with_its_simulation(name: str, bits: str) -> None:
    images = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    result = quantize(network(*NETWORKS[name]), bits=bits, calib=images, options=TINY, device="cpu")
    for output in result.report.outputs:
        assert output.quantized_simulated is not None
        assert output.quantized_simulated.relative_error < 1e-3, output


RESIDUAL = f"""{STEM} c1 = Conv {P} (r0, u) r1 = Relu(c1) c2 = Conv {P} (r1, w) s = Add(c2, r0) r2 = Relu(s)
    c3 = Conv {P} (r2, w3) z = Relu(c3) {GAP}"""


WIDE = {
    "residual": RESIDUAL,
    "signed, behind a pool": f"""{STEM} m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r0)
        c1 = Conv {P} (m, u) r1 = Relu(c1) c2 = Conv {P} (r1, w) s = Add(m, c2)
        q = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s) c3 = Conv {P} (q, w3) z = Add(c3, s) {GAP}""",
}


@pytest.mark.parametrize("target", ["ort", "native", "qcdq"])
@pytest.mark.parametrize("bits", ["4/4", "2/2", "4/8"])
@pytest.mark.parametrize("name", WIDE)
def test_wide_residuals_agree_with_the_simulation_in_every_layout(name: str, bits: str, target: str) -> None:
    images = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    arguments = {"bits": bits, "calib": images, "options": TINY, "device": "cpu", "target": target}
    result = quantize(network(WIDE[name]), wide_residuals=True, **arguments)
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3
    assert result.report.settings["wide_residuals"] is True
    assert any("narrow" in name for name in result.plan.points) is (bits != "4/8")
    if target == "ort":
        assert result.report.kernels.all_integer
        assert result.report.kernels.between_pairs == {}
        kinds = {node.op_type for node in optimized(result.model).graph.node}
        assert kinds.isdisjoint({"Identity", "Add"}), "requantization is an integer kernel too"
        assert "QLinearAdd" in kinds
        if bits == "4/8":
            same = quantize(network(WIDE[name]), **arguments).model
            assert [t.raw_data for t in same.graph.initializer] == [t.raw_data for t in result.model.graph.initializer]


def test_wide_residuals_of_a_chain_are_told(caplog: pytest.LogCaptureFixture) -> None:
    inspect_model(network(f"{STEM} c1 = Conv {P} (r0, u) z = Relu(c1) {GAP}"), wide_residuals=True)
    assert "--wide-residuals changes nothing" in caplog.text


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxruntime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


@pytest.mark.parametrize("bits", ["8/8", "4/4"])
def test_hard_swish_and_hard_sigmoid_run_in_integers(bits: str) -> None:
    """The gates too: calibration fits the scales, and the file has a Clip of integers for each."""
    body = f"""{STEM} c1 = Conv {P} (r0, u) h = HardSwish(c1) g = GlobalAveragePool(h) e = Conv {P} (g, w)
        t = HardSigmoid(e) z = Mul(h, t) {GAP}"""
    images = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    result = quantize(network(body), bits=bits, calib=images * 4, options=TINY, device="cpu")
    assert result.report.kernels.all_integer
    assert result.report.kernels.between_pairs == {}
    assert "HardSigmoid" not in {node.op_type for node in result.model.graph.node}
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3


@pytest.mark.parametrize(
    ("excluded", "floating"),
    [("^c1$", {"c1"}), ("^c2$", {"c2"}), ("^c0$", {"c0"}), ("^y$", {"y"}), ("^c[123]$", {"c1", "c2", "c3"})],
)
def test_excluded_layers_run_in_float_and_their_neighbours_as_integers(excluded: str, floating: set[str]) -> None:
    model = network(RESIDUAL)
    for node in model.graph.node:
        node.name = node.output[0]
    images = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    result = quantize(
        model,
        bits="4/4",
        calib=images,
        options=TINY,
        device="cpu",
        exclude=[excluded],
        layer_bits={"^c.$": "3/5"},
        first_last="6/7",
    )
    report = result.report
    assert {row["node"] for row in report.layers if row["excluded"]} == floating
    assert all((row["weight_bits"] is None) == (row["node"] in floating) for row in report.layers)
    assert sum(report.kernels.floating.values()) == len(floating)
    assert sum(report.kernels.integer.values()) == 5 - len(floating)
    assert report.settings["exclude"] == [excluded]
    assert report.settings["layer_bits"] == ["^c.$=3/5"]
    assert report.settings["first_last"] == "6/7"
    assert report.outputs[0].quantized_simulated is not None
    assert report.outputs[0].quantized_simulated.relative_error < 1e-3
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    written = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    weights = {node.name: node.input[1] for node in model.graph.node if node.name in floating}
    assert all(np.array_equal(written[name], constants[name]) for name in weights.values())


@pytest.mark.parametrize(
    ("target", "bits"), [("native", "4/4"), ("native", "2/2"), ("qcdq", "4/4"), ("tensorrt", "8/8")]
)
@pytest.mark.parametrize("excluded", ["^c1$", "^c2$", "^c0$", "^c[123]$"])
def test_excluded_layers_are_float_in_every_layout(target: str, bits: str, excluded: str) -> None:
    model = network(RESIDUAL)
    for node in model.graph.node:
        node.name = node.output[0]
    images = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    arguments = {"bits": bits, "exclude": [excluded]}
    result = quantize(model, calib=images, options=TINY, device="cpu", target=target, **arguments)
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-3
    written, constants = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in m.graph.initializer}
        for m in (result.model, model)
    )
    assert result.plan.excluded
    assert all(np.array_equal(written[layer.weight], constants[layer.weight]) for layer in result.plan.excluded)
    found = inspect_model(model, target=target, **arguments)
    assert found.kernels is not None
    assert found.kernels.floating == result.report.kernels.floating
    assert {node.node for node in found.floating} >= {layer.node for layer in result.plan.excluded}
    assert found.problems == ()


OTHERS = {
    "two inputs": (f"{STEM} c1 = Conv {P} (r0, u) j = Add(c1, other) z = Relu(j) {GAP}",
                   "float[N,3,8,8] image, float[N,4,8,8] other", {"image": (3, 8, 8), "other": (4, 8, 8)}),
    "an input of features": (f"{STEM} p = GlobalAveragePool(r0) f = Flatten(p) g = Concat <axis = 1> (f, features) "
                             "h = Gemm <transB = 1> (g, v6) r = Relu(h) y = Gemm <transB = 1> (r, v)",
                             "float[N,3,8,8] image, float[N,2] features", {"image": (3, 8, 8), "features": (2,)}),
    "a fixed batch": (f"{STEM} j = Add(r0, other) z = Relu(j) {GAP}",
                      "float[4,3,8,8] image, float[4,4,8,8] other", {"image": (3, 8, 8), "other": (4, 8, 8)}),
    "1-D convolutions": ("c = Conv <pads = [1, 1]> (signal, x0) r = Relu(c) c1 = Conv <pads = [1, 1]> (r, x1) "
                         f"z = Relu(c1) {GAP}", "float[N,3,16] signal", {"signal": (3, 16)}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_take_other_things_than_one_image(name: str, tmp_path: Path) -> None:
    body, inputs, shapes = OTHERS[name]
    generator = np.random.default_rng(1)
    data = {key: generator.normal(size=(12, *shape)).astype(np.float32) for key, shape in shapes.items()}
    np.savez(tmp_path / "data.npz", **data, labels=np.arange(12) % 5)
    outputs = "float[4,K] y" if "[4," in inputs else "float[N,K] y"
    for calib in (data, tmp_path / "data.npz"):
        result = quantize(network(body, outputs, inputs=inputs), calib=calib, options=TINY, device="cpu")
        (output,) = result.report.outputs
        assert output.quantized_simulated is not None
        assert output.quantized_simulated.relative_error < 1e-3
        assert result.report.images == 12
    assert result.report.quantized_accuracy is not None
    feed = {key: value[:4] for key, value in data.items()}
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, feed)[0].shape == (4, 5)


@pytest.mark.parametrize("scale", [1e-2, 1e-3])
def test_small_activations_keep_positive_scales_near_the_searched_ones(scale: float) -> None:
    body, outputs = f"{STEM} c = Conv {P} (r0, u) z = Relu(c) {GAP}", "float[N,K] y"
    images = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    model = network(body, outputs, scale)
    searched, learned = (
        quantize(
            model,
            bits="4/4",
            calib=images,
            device="cpu",
            options={"samples": 12, "correction_iters": 0, **learning},
        ).tensors
        for learning in ({"iters": 0}, {"iters": 60, "batch_size": 4, "scale_lr": 1e-3})
    )
    for tensor in ("r0", "z"):
        ratio = learned[tensor].scale / searched[tensor].scale
        assert 0.5 <= ratio <= 2.0
