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
