"""A model exported at batch size 1 is imported so that it runs at any."""

import numpy as np
import onnx
import pytest
import torch

from pdq_export.frontend import import_model
from pdq_export.graph.passes import free_batch, tidy

from .models import random, run


def test_reshape_keeps_the_batch_axis() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float[1,2,3] x) => (float[1,6] y) <int64[2] shape = {1, 6}> { y = Reshape(x, shape) }"""
    )
    freed = free_batch.run(model)
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    (y,) = import_model(freed)(torch.from_numpy(x))
    np.testing.assert_array_equal(y.numpy(), x.reshape(4, 6))
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).tolist() == [1, 6]  # the original is left alone


def test_a_dynamic_batch_is_left_alone() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float[N,2,3] x) => (float[M,6] y) <int64[2] shape = {-1, 6}> { y = Reshape(x, shape) }"""
    )
    assert free_batch.run(model) == model


def freed(body: str, shapes: str, constants: dict[str, np.ndarray], batch: int, opset: int = 17) -> list[np.ndarray]:
    """The outputs of the freed model for ``batch`` images, and of onnxruntime on the original, image by image."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> m {shapes} {{ {body} }}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    x = random(batch, 2, 3, 4)
    (y,) = import_model(free_batch.run(tidy.infer_shapes(model)))(torch.from_numpy(x))
    own = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    parts = [run(model, x=x[start : start + own])[0] for start in range(0, batch, own)]
    return [y.numpy(), np.concatenate(parts)]


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ('y = Resize <mode = "nearest"> (x, , , sizes)', {"sizes": [2, 6, 8]}),
        ("y = Expand(x, sizes)", {"sizes": [2, 3, 4]}),
        ("y = Concat <axis = 1> (token, x)", {"token": [1, 3, 4]}),
        ("y = Concat <axis = -1> (x, token, x)", {"token": [2, 3, 1]}),
    ],
)
def test_resize_expand_and_concat(body: str, constants: dict[str, list[int]], own: int) -> None:
    values = {
        name: np.array([own, *rest]) if name == "sizes" else np.repeat(random(1, *rest), own, axis=0)
        for name, rest in constants.items()
    }
    found, expected = freed(body, f"(float[{own},2,3,4] x) => (float[{own},K,L,M] y)", values, batch=4)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize("shape", ["rows", "free"])
@pytest.mark.parametrize("allowzero", [0, 1])
def test_reshapes_that_merge_the_batch_axis_with_others(own: int, shape: str, allowzero: int) -> None:
    """As onnxsim writes a Linear on images [N, L, K], and exporters a window partition; torch sets allowzero."""
    body = f"""
        flat = Reshape <allowzero = {allowzero}> (x, {shape})
        some = MatMul(flat, w)
        more = Relu(some)
        back = Reshape <allowzero = {allowzero}> (more, sizes)
        moved = Transpose <perm = [0, 2, 1, 3]> (back)
        parts = Reshape <allowzero = {allowzero}> (moved, windows)
        sums = ReduceSum <keepdims = 1> (parts, axis)
        mixed = Add(parts, sums)
        y = Reshape <allowzero = {allowzero}> (mixed, end)"""
    constants = {
        "rows": np.array([6 * own, 4]),
        "free": np.array([-1, 4]),
        "w": random(4, 5),
        "sizes": np.array([own, 2, 3, 5]),
        "windows": np.array([3 * own, 2, 5]),
        "axis": np.array([1]),
        "end": np.array([own, 30]),
    }
    found, expected = freed(body, f"(float[{own},2,3,4] x) => (float[{own},30] y)", constants, batch=4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "t = Reshape(x, s) a = Slice(t, i, j, j) b = Slice(t, j, k, j) c = Concat <axis = 1> (b, a) y = Reshape(c, e)",
        "t = Reshape(x, u) a = Expand(t, w) y = Reshape(a, f)",
    ],
)
def test_merged_axes_behind_a_concat_and_an_expand(body: str) -> None:
    """As detectors take their boxes apart."""
    vectors = {"s": [6, 4], "i": [0], "j": [1], "k": [2], "e": [1, 12], "u": [6, 1, 4], "w": [6, 2, 4], "f": [1, 48]}
    constants = {name: np.array(value) for name, value in vectors.items() if name in body}
    found, expected = freed(body, "(float[1,2,3,4] x) => (float[1,K] y)", constants, batch=3)
    np.testing.assert_array_equal(found, expected)


def test_the_zero_of_an_empty_tensor_is_left_alone() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float[1,0,3] x) => (float[1,3,0] y) <int64[3] s = {1, 3, 0}> { y = Reshape <allowzero = 1> (x, s) }"""
    )
    assert free_batch.run(model) == model
