"""The written-down arithmetic against onnxruntime's integer kernels, bit for bit."""

import platform

import numpy as np
import onnx
import onnxruntime
import pytest

from pdq_export.arithmetic.integer import add_integers, average_integers, requantize

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the arithmetic of x86-64 kernels"
)


def run(node: onnx.NodeProto, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray]) -> np.ndarray:
    graph = onnx.helper.make_graph(
        [node],
        "kernel",
        [onnx.helper.make_tensor_value_info(k, onnx.TensorProto.UINT8, v.shape) for k, v in inputs.items()],
        [onnx.ValueInfoProto(name=node.output[0])],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0].astype(np.int64)


def scale(rng: np.random.Generator) -> np.float32:
    return np.float32(rng.uniform(0.005, 0.05))


def check_addition(a: np.ndarray, b: np.ndarray, scales: list[np.float32], zeros: list[int]) -> None:
    """The sum of two tensors; scales and zero points of both and of the sum."""
    constants = {}
    for name, s, z in zip("abc", scales, zeros, strict=True):
        constants |= {f"s{name}": s, f"z{name}": np.uint8(z)}
    node = onnx.helper.make_node(
        "QLinearAdd", ["a", "sa", "za", "b", "sb", "zb", "sc", "zc"], ["c"], domain="com.microsoft"
    )
    wide = a.astype(np.int64), b.astype(np.int64)
    expected = add_integers(wide[0], scales[0], zeros[0], wide[1], scales[1], zeros[1], scales[2], zeros[2])
    assert (run(node, {"a": a, "b": b}, constants) == expected.clip(0, 255)).all()


@pytest.mark.parametrize("seed", range(8))
def test_add(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 256, (1, 8, 64, 64)).astype(np.uint8) for _ in range(2))
    scales, zeros = [scale(rng) for _ in range(3)], [int(z) for z in rng.integers(0, 256, 3)]
    if seed < 4:  # few decimals put many sums close to the middle between two integers
        scales = [np.float32(np.round(s, 3)) for s in scales]
    check_addition(a, b, scales, zeros)


@pytest.mark.parametrize("seed", range(60))
def test_add_every_pair(seed):
    """Sums near the middle between two integers tell how each term is rounded; few decimals make more of them."""
    rng = np.random.default_rng(seed)
    a, b = (q.reshape(1, 8, 64, 128).astype(np.uint8) for q in np.meshgrid(np.arange(256), np.arange(256)))
    scales = [np.float32(round(rng.uniform(0.005, top), 3 if seed % 2 else 9)) for top in (0.05, 0.05, 0.15)]
    za, zb, zc = (int(z) for z in rng.integers(0, 256, 3))
    check_addition(a, b, scales, [za, zb, zc if seed % 4 < 2 else 0])


@pytest.mark.parametrize("seed", range(8))
def test_requantize(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (1, 16, 40, 40)).astype(np.uint8)
    w = rng.integers(-64, 65, (24, 16, 1, 1)).astype(np.int8)  # wider ones saturate where there is no VNNI
    bias = rng.integers(-10_000, 10_000, 24).astype(np.int32)
    weight_scale = rng.uniform(0.001, 0.01, 24).astype(np.float32)
    x_scale, y_scale = scale(rng), np.float32(rng.uniform(0.05, 0.5))
    x_zero, y_zero = (int(z) for z in rng.integers(0, 256, 2))
    constants = {
        "sx": x_scale,
        "zx": np.uint8(x_zero),
        "w": w,
        "sw": weight_scale,
        "zw": np.zeros(24, np.int8),
        "sy": y_scale,
        "zy": np.uint8(y_zero),
        "b": bias,
    }
    node = onnx.helper.make_node("QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"], ["y"])
    sums = np.einsum("nchw,oc->nohw", x.astype(np.int64) - x_zero, w[:, :, 0, 0].astype(np.int64))
    accumulator = sums + bias[:, None, None]
    expected = requantize(accumulator, x_scale, weight_scale[:, None, None], y_scale) + y_zero
    assert (run(node, {"x": x}, constants) == expected.clip(0, 255)).all()


@pytest.mark.parametrize("side", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(4))
def test_global_average(side, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (2, 512, side, side)).astype(np.uint8)
    x_zero, y_zero = (0, 0) if seed < 2 else (int(z) for z in rng.integers(0, 256, 2))
    x_scale = scale(rng)
    # equal scales, or a simple ratio, put many averages in the middle between two integers
    y_scale = x_scale * np.float32([1, 0.6, 1, rng.uniform(0.5, 1)][seed])
    constants = {"sx": x_scale, "zx": np.uint8(x_zero), "sy": y_scale, "zy": np.uint8(y_zero)}
    node = onnx.helper.make_node(
        "QLinearGlobalAveragePool", ["x", "sx", "zx", "sy", "zy"], ["y"], domain="com.microsoft", channels_last=0
    )
    expected = average_integers(x.astype(np.int64), x_scale, x_zero, y_scale, y_zero)
    assert (run(node, {"x": x}, constants) == expected.clip(0, 255)).all()
