"""A model exported at batch size 1 is imported so that it runs at any."""

import numpy as np
import onnx
import torch

from pdq_export.frontend import import_model
from pdq_export.graph.passes import free_batch


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
