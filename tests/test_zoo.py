"""The model zoo: families of networks that users bring, each through the whole pipeline with a tiny budget.

The residual unit, squeeze and excitation, HardSwish and others are in test_networks.py.
"""

import numpy as np
import onnx
import pytest

from pdq_export.commands.convert import convert
from pdq_export.commands.quantize import Result, quantize
from pdq_export.graph.lookup import GraphIndex

from .onnx_text import fill, parse

TINY = {"samples": 12, "iters": 6, "correction_iters": 2, "batch_size": 4}
PAD = "<pads = [1, 1, 1, 1]>"
HALF = "<pads = [1, 1, 1, 1], strides = [2, 2]>"
TWICE = '<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
STEM = f"c0 = Conv {PAD} (image, w0) r0 = Relu(c0)"
HEAD = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm <transB = 1> (f, classes)"
SCORES, IMAGE = "float[N,5] y", "float[N,4,8,8] y"

# Weights by name: the networks read what they need.
SHAPES: dict[str, tuple[int, ...]] = {
    "w0": (4, 3, 3, 3),
    "w": (4, 4, 3, 3),
    "u": (4, 4, 3, 3),
    "wide": (4, 8, 3, 3),
    "wider": (4, 12, 3, 3),
    "up": (4, 4, 2, 2),
    "expand": (12, 4, 1, 1),
    "depth": (12, 1, 3, 3),
    "project": (4, 12, 1, 1),
    "less": (2, 4, 1, 1),
    "more": (4, 2, 1, 1),
    "patch": (4, 3, 4, 4),
    "l1": (4, 3, 3),
    "l2": (4, 4, 3),
    "wq": (4, 4),
    "wk": (4, 4),
    "wv": (4, 4),
    "wo": (4, 4),
    "m1": (4, 8),
    "m2": (8, 4),
    "g": (4,),
    "b": (4,),
    "lw": (2, 16, 4),
    "lr": (2, 16, 4),
    "lb": (2, 32),
    "both": (5, 8),
    "gw": (1, 12, 4),
    "gr": (1, 12, 4),
    "classes": (5, 4),
    "q_bias": (4,),
}

ATTENTION = """n1 = LayerNormalization(tokens, g, b)
    q0 = MatMul(n1, wq) q = Add(q0, q_bias) k = MatMul(n1, wk) v = MatMul(n1, wv)
    kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul(q, kt) half = Constant <value_float = 0.5> () t = Mul(s, half)
    a = Softmax <axis = -1> (t) o = MatMul(a, v) oo = MatMul(o, wo) x1 = Add(oo, tokens)
    n2 = LayerNormalization(x1, g, b) h1 = MatMul(n2, m1) e = Erf(h1) h = Mul(h1, e) h2 = MatMul(h, m2)
    x2 = Add(h2, x1)"""
SEQUENCE = f"""{STEM} m = MaxPool <kernel_shape = [1, 8], strides = [1, 8]> (r0) axis = Constant <value_ints = [3]> ()
    flat = Squeeze(m, axis) steps = Transpose <perm = [2, 0, 1]> (flat)"""

ZOO = {
    "plain": (f"{STEM} c1 = Conv {PAD} (r0, w) r1 = Relu(c1) c2 = Conv {HALF} (r1, u) z = Relu(c2) {HEAD}", SCORES),
    "residual": (f"{STEM} c1 = Conv {PAD} (r0, w) r1 = Relu(c1) c2 = Conv {PAD} (r1, u) s = Add(c2, r0) z = Relu(s) "
                 f"{HEAD}", SCORES),
    "inverted residual": (f"{STEM} lo = Constant <value_float = 0.0> () hi = Constant <value_float = 6.0> () "
                          "c1 = Conv(r0, expand) r1 = Clip(c1, lo, hi) "
                          "c2 = Conv <pads = [1, 1, 1, 1], group = 12> (r1, depth) r2 = Clip(c2, lo, hi) "
                          f"c3 = Conv(r2, project) z = Add(c3, r0) {HEAD}", SCORES),
    "squeeze and excitation": (f"{STEM} g1 = GlobalAveragePool(r0) g2 = Conv(g1, less) g3 = Relu(g2) "
                               f"g4 = Conv(g3, more) g5 = HardSigmoid(g4) z = Mul(r0, g5) {HEAD}", SCORES),
    "dense": (f"{STEM} c1 = Conv {PAD} (r0, w) r1 = Relu(c1) d1 = Concat <axis = 1> (r0, r1) "
              f"c2 = Conv {PAD} (d1, wide) r2 = Relu(c2) d2 = Concat <axis = 1> (r0, r1, r2) "
              f"c3 = Conv {PAD} (d2, wider) z = Relu(c3) {HEAD}", SCORES),
    "feature pyramid": (f"{STEM} c1 = Conv {HALF} (r0, w) r1 = Relu(c1) c2 = Conv {HALF} (r1, u) r2 = Relu(c2) "
                        "scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () "
                        f"u1 = Resize {TWICE} (r2, , scales) s1 = Add(u1, r1) o1 = Conv {PAD} (s1, w) "
                        f"u2 = Resize {TWICE} (s1, , scales) s2 = Add(u2, r0) o2 = Conv {PAD} (s2, u) "
                        f"o0 = Conv {PAD} (r2, w)", "float[N,4,2,2] o0, float[N,4,4,4] o1, float[N,4,8,8] o2"),
    "u-net": (f"{STEM} m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r0) c1 = Conv {PAD} (m, w) "
              "r1 = Relu(c1) t = ConvTranspose <strides = [2, 2]> (r1, up, q_bias) k = Concat <axis = 1> (t, r0) "
              f"c2 = Conv {PAD} (k, wide) r2 = Relu(c2) c3 = Conv {PAD} (r2, u) y = Sigmoid(c3)", IMAGE),
    "linear resize": (f"{STEM} c1 = Conv {HALF} (r0, w) r1 = Relu(c1) c2 = Conv {PAD} (r1, u) "
                      "scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () "
                      'y = Resize <mode = "linear"> (c2, , scales)', IMAGE),
    "silu": (f"{STEM} c1 = Conv {PAD} (r0, u) s1 = Sigmoid(c1) r1 = Mul(c1, s1) c2 = Conv {PAD} (r1, w) "
             f"s2 = Sigmoid(c2) z = Mul(c2, s2) {HEAD}", SCORES),
    "hard swish": (f"{STEM} c1 = Conv {PAD} (r0, u) r1 = HardSwish(c1) c2 = Conv {PAD} (r1, w) z = HardSwish(c2) "
                   f"{HEAD}", SCORES),
    "vision transformer": ("c = Conv <strides = [4, 4]> (image, patch) shape = Constant <value_ints = [0, 4, -1]> () "
                           f"f0 = Reshape(c, shape) tokens = Transpose <perm = [0, 2, 1]> (f0) {ATTENTION} "
                           "f = ReduceMean <axes = [1], keepdims = 0> (x2) y = Gemm <transB = 1> (f, classes)",
                           SCORES),
    "class token": ("c = Conv <strides = [4, 4]> (image, patch) shape = Constant <value_ints = [0, 4, -1]> () "
                    f"f0 = Reshape(c, shape) tokens = Transpose <perm = [0, 2, 1]> (f0) {ATTENTION} "
                    "first = Constant <value_int = 0> () f = Gather <axis = 1> (x2, first) "
                    "y = Gemm <transB = 1> (f, classes)", SCORES),
    "lstm head": (f'{SEQUENCE} t, h, cell = LSTM <hidden_size = 4, direction = "bidirectional"> (steps, lw, lr, lb) '
                  "turned = Transpose <perm = [1, 0, 2]> (h) f = Flatten(turned) y = Gemm <transB = 1> (f, both)",
                  SCORES),
    "gru over every step": (f"{SEQUENCE} t, h = GRU <hidden_size = 4> (steps, gw, gr) axis1 = Constant "
                            "<value_ints = [1]> () s = Squeeze(t, axis1) scores = MatMul(s, wq) "
                            "y = Transpose <perm = [1, 0, 2]> (scores)", "float[N,8,4] y"),
    "one-dimensional": ("shape = Constant <value_ints = [0, 3, -1]> () x = Reshape(image, shape) "
                        "c1 = Conv <pads = [1, 1]> (x, l1) r1 = Relu(c1) m = MaxPool <kernel_shape = [2]> (r1) "
                        f"c2 = Conv <pads = [1, 1]> (m, l2) z = Relu(c2) {HEAD}", SCORES),
    "mask": (f"{STEM} c1 = Conv {PAD} (r0, w) r1 = Relu(c1) c2 = Conv {PAD} (r1, u) s = Sigmoid(c2) "
             "half = Constant <value_float = 0.5> () m = Greater(s, half) y = Cast <to = 1> (m)", IMAGE),
    "sorted": (f"{STEM} c1 = Conv {PAD} (r0, w) z = Relu(c1) p = GlobalAveragePool(z) f = Flatten(p) "
               "s = Gemm <transB = 1> (f, classes) k = Constant <value_ints = [2]> () y, i = TopK <axis = 1> (s, k)",
               "float[N,2] y, int64[N,2] i"),
    "size beside the scores": (f"{STEM} c1 = Conv {PAD} (r0, w) z = Relu(c1) {HEAD} size = Shape(y)",
                               f"{SCORES}, int64[2] size"),
    "root of a relu": (f"{STEM} c1 = Conv {PAD} (r0, w) r1 = Relu(c1) q = Sqrt(r1) y = Conv {PAD} (q, u)", IMAGE),
    "normalized embedding": (f"{STEM} c1 = Conv {PAD} (r0, w) r1 = Relu(c1) p = GlobalAveragePool(r1) f = Flatten(p) "
                             "e = Gemm <transB = 1> (f, classes) n = ReduceL2 <axes = [1]> (e) y = Div(e, n)", SCORES),
}  # fmt: skip


def build(body: str, outputs: str) -> onnx.ModelProto:
    """``body`` from ``image`` to ``outputs``, with random weights."""
    return fill(parse(body, outputs=outputs), SHAPES)


def run(model: onnx.ModelProto, bits: str, target: str = "ort") -> Result:
    images = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    return quantize(model, bits=bits, calib=images, options=TINY, device="cpu", target=target)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("bits", ["4/4", "2/2"])
def test_a_network_of_the_zoo_is_quantized_and_agrees_with_its_simulation(name: str, bits: str) -> None:
    result = run(build(*ZOO[name]), bits)  # it has been loaded and run in onnxruntime then
    for output in result.report.outputs:
        assert output.quantized_simulated is not None
        assert output.quantized_simulated.relative_error < 1e-3, output
    index = GraphIndex(result.model)
    weighted = [n for n in index.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert not any(index.is_constant(n.input[1]) for n in weighted), "a constant weight was left in float"
    for target in ("native", "qcdq"):
        assert convert(convert(result.model, target), "ort") == result.model


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(("target", "bits"), [("native", "2/4"), ("qcdq", "4/3"), ("tensorrt", "8/8")])
def test_a_network_of_the_zoo_in_another_layout(name: str, target: str, bits: str) -> None:
    for output in run(build(*ZOO[name]), bits, target).report.outputs:
        assert output.quantized_simulated is not None
        assert output.quantized_simulated.relative_error < 1e-3, output
