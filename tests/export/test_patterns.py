"""Every pattern that keeps a CNN in integers in onnxruntime, one small network each: kernels are counted."""

import collections
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pdq_export.export import export_model
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.validate import count_kernels

from . import toy_networks as nets
from .toy_quantizer import calibrate, simulate

STEM = "c = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu(c)"
NEXT = "j = Conv <pads=[1,1,1,1]> (m, v, d) z = Relu(j)"
HEAD = "g = GlobalAveragePool(z) f = Flatten(g) y = Gemm <transB=1> (f, h, i)"
NEAREST = '<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
SQUEEZE = "q = GlobalAveragePool(r) e = Conv(q, o, p) s = Relu(e) l = Conv(s, o2, p2)"

WEIGHTS = {
    "w": (8, 3, 3, 3),
    "b": (8,),
    "v": (8, 8, 3, 3),
    "d": (8,),
    "h": (5, 8),
    "i": (5,),
    "u": (8, 16, 1, 1),
    "o": (4, 8, 1, 1),
    "p": (4,),
    "o2": (8, 4, 1, 1),
    "p2": (8,),
    "transposed": (8, 8, 2, 2),
    "depthwise": (8, 1, 3, 3),
    "grouped": (8, 4, 3, 3),
    "matrix": (8, 5),
    "square": (8, 8),
    "slope": (8, 1, 1),
}
VALUES = {
    "three": np.float32(3),
    "zero": np.float32(0),
    "six": np.float32(6),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "starts": np.array([1]),
    "ends": np.array([9]),
    "axes": np.array([2]),
    "apart": np.array([0, 2, 4, 12, 12]),
    "together": np.array([0, 8, 12, 12]),
}
# Name: nodes, integer kernels besides QLinearConv and the head, what runs in float between pairs.
PATTERNS = {
    "residual Add": (f"{STEM} e = Conv <pads=[1,1,1,1]> (r, v, d) a = Add(e, r) z = Relu(a)", {"QLinearAdd": 1}, {}),
    "Concat": (
        f"{STEM} e = Conv <pads=[1,1,1,1]> (r, v, d) s = Relu(e) t = Concat <axis=1> (r, s) z = Conv(t, u, d)",
        {"QLinearConcat": 1},
        {},
    ),
    "pooling": (
        f"{STEM} n = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r) "
        f"m = AveragePool <kernel_shape=[2,2], strides=[2,2]> (n) {NEXT}",
        {"NhwcMaxPool": 1, "QLinearAveragePool": 1},
        {},
    ),
    "SE with Sigmoid": (
        f"{STEM} {SQUEEZE} n = Sigmoid(l) m = Mul(r, n) {NEXT}",
        {"QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
        {},
    ),
    "SE with HardSigmoid": (
        f"{STEM} {SQUEEZE} n = HardSigmoid(l) m = Mul(r, n) {NEXT}",
        {"QLinearGlobalAveragePool": 1, "QLinearMul": 1},
        {},
    ),
    "SiLU": (
        f"c = Conv(x, w, b) s = Sigmoid(c) m = Mul(c, s) {NEXT}",
        {"QLinearSigmoid": 1, "QLinearMul": 1},
        {},
    ),
    "HardSwish": (f"c = Conv(x, w, b) m = HardSwish(c) {NEXT}", {"QLinearMul": 1}, {}),
    "HardSwish as HardSigmoid and Mul": (
        f"c = Conv(x, w, b) s = HardSigmoid <alpha=0.16666667> (c) m = Mul(c, s) {NEXT}",
        {"QLinearMul": 1},
        {},
    ),
    "HardSwish as Add, Clip, Mul, Div": (
        f"c = Conv(x, w, b) k = Add(c, three) s = Clip(k, zero, six) n = Mul(c, s) m = Div(n, six) {NEXT}",
        {"QLinearMul": 1},
        {},
    ),
    "HardSigmoid that does not begin at 0": (
        f"c = Conv(x, w, b) s = HardSigmoid <alpha=0.16666667, beta=0.4> (c) m = Mul(c, s) {NEXT}",
        {"QLinearMul": 1},
        {"HardSigmoid": 1},
    ),
    "LeakyRelu": (f"c = Conv(x, w, b) m = LeakyRelu <alpha=0.1> (c) {NEXT}", {"QLinearLeakyRelu": 1}, {}),
    "PRelu": (f"c = Conv(x, w, b) m = PRelu(c, slope) {NEXT}", {}, {"PRelu": 1}),
    "ReLU6": (f"c = Conv(x, w, b) m = Clip(c, zero, six) {NEXT}", {}, {}),
    "nearest Resize": (f"{STEM} m = Resize {NEAREST} (r, , twice) {NEXT}", {"Resize": 1}, {}),
    "linear Resize": (f'{STEM} m = Resize <mode="linear"> (r, , twice) {NEXT}', {}, {"Resize": 1}),
    "FPN": (
        f"{STEM} e = Conv <strides=[2,2], pads=[1,1,1,1]> (r, v, d) k = Resize {NEAREST} (e, , twice) "
        f"m = Add(r, k) {NEXT}",
        {"Resize": 1, "QLinearAdd": 1},
        {},
    ),
    "Pad": (f"{STEM} m = Pad(r, pads) {NEXT}", {}, {}),
    "Slice": (f"{STEM} m = Slice(r, starts, ends, axes) {NEXT}", {"Slice": 1}, {}),
    "Transpose": (f"{STEM} m = Transpose <perm=[0,1,3,2]> (r) {NEXT}", {}, {}),
    "channel shuffle": (
        f"{STEM} k = Reshape(r, apart) n = Transpose <perm=[0,2,1,3,4]> (k) m = Reshape(n, together) {NEXT}",
        {"Reshape": 2},
        {},
    ),
    "Split": (
        f"{STEM} k, n = Split <axis=1, num_outputs=2> (r) m = Concat <axis=1> (n, k) {NEXT}",
        {"Split": 1, "QLinearConcat": 1},
        {},
    ),
    "depthwise": (
        f"{STEM} e = Conv <group=8, pads=[1,1,1,1]> (r, depthwise, d) m = Relu(e) {NEXT}",
        {},
        {},
    ),
    "grouped": (f"{STEM} e = Conv <group=2, pads=[1,1,1,1]> (r, grouped, d) m = Relu(e) {NEXT}", {}, {}),
}
HEADS = {
    "Gemm": "y = Gemm <transB=1> (f, h, i)",
    "MatMul and Add": "l = MatMul(f, matrix) y = Add(l, i)",
    "two Gemm": "l = Gemm (f, square, d) q = Relu(l) y = Gemm <transB=1> (q, h, i)",
    "MatMul, Add and Gemm": "l = MatMul(f, square) a = Add(l, d) q = Relu(a) y = Gemm <transB=1> (q, h, i)",
}
SEEN = {"QuantizeLinear", "DequantizeLinear", "Clip", "Transpose", "Flatten", "PRelu"}


def build(text: str, output: str = "float[N,5] y") -> onnx.ModelProto:
    words = set(re.findall(r"\w+", text))
    weights = {name: shape for name, shape in WEIGHTS.items() if name in words}
    model = nets.network(f"(float[N,3,12,12] x) => ({output}) {{ {text} }}", weights)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value), name) for name, value in VALUES.items() if name in words
    )
    return prepare(model).model


def export(model: onnx.ModelProto, bits: str = "4/4") -> bytes:
    """Exported, and held against the simulation as onnxruntime runs it."""
    plan = make_plan(model, PlanOptions.of(bits))
    feeds = {"x": nets.images((2, 3, 12, 12))}
    tensors = calibrate(model, plan, feeds)
    content = export_model(model, plan, tensors, metadata={}).SerializeToString()
    expected = simulate(model, plan, tensors, feeds)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for name, value in zip(expected, session.run(list(expected), feeds), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5 if bits != "8/8" else 0.05)
    return content


def operators(content: bytes, folder: Path) -> collections.Counter[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", PATTERNS)
def test_integer_kernels(name: str, tmp_path: Path) -> None:
    text, integer, floating = PATTERNS[name]
    content = export(build(f"{text} {HEAD}"))
    found, kernels = operators(content, tmp_path), count_kernels(content)
    assert kernels.all_integer
    assert kernels.between_pairs == floating
    wanted = collections.Counter({**integer, "QLinearConv": text.count("Conv"), "QGemm": 1})
    wanted["QLinearGlobalAveragePool"] += 1
    assert {op_type: found[op_type] for op_type in wanted} == wanted
    assert set(found) <= {*wanted, *SEEN, *floating}
    assert found["QuantizeLinear"] == 1 + bool(floating), "a tensor leaves the integers for no reason"


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    text = f"{STEM} g = GlobalAveragePool(r) f = Flatten(g) {HEADS[name]}"
    kernels = count_kernels(export(build(text)))
    assert kernels.all_integer
    assert sum(kernels.integer.values()) == len(re.findall(r"Conv|Gemm|MatMul", text))


@pytest.mark.parametrize("bits", ["8/8", "2/2"])
def test_other_bits_have_the_same_kernels(bits: str) -> None:
    for text, _, floating in PATTERNS.values():
        kernels = count_kernels(export(build(f"{text} {HEAD}"), bits))
        assert (kernels.all_integer, kernels.between_pairs) == (True, floating), text


def test_a_transposed_convolution_has_no_integer_kernel() -> None:
    text = f"{STEM} k = ConvTranspose <strides=[2,2], kernel_shape=[2,2]> (r, transposed, d) m = Relu(k) {NEXT} {HEAD}"
    kernels = count_kernels(export(build(text)))
    assert kernels.floating == {"ConvTranspose": 1}
    assert kernels.integer == {"QLinearConv": 2, "QGemm": 1}


def test_a_convolution_that_is_a_graph_output_has_no_integer_kernel() -> None:
    """QLinearConv writes integers, ConvInteger takes no bias or scale; the network's outputs are not quantized."""
    kernels = count_kernels(export(build(f"{STEM} y = Conv(r, v, d)", "float[N,8,10,10] y")))
    assert kernels.floating == {"Conv": 1}
    assert len(kernels.floating_nodes) == 1
