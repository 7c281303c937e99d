"""A model that fails when it runs is told by node, before any work is done."""

import numpy as np
import onnx
import pytest
import torch

from pdq_export.errors import ModelError
from pdq_export.frontend import check_runs, import_model


def network(body: str) -> onnx.ModelProto:
    signature = "g (float[N,A] x) => (float[B,C] y)"
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {signature} {{ {body} }}')


def test_the_node_that_fails_is_named() -> None:
    model = network("[scale] s = Mul(x, x) [turned] t = Transpose(s) [sum] y = Add(s, t)")
    module = import_model(model)
    check_runs(module, [torch.zeros(3, 3)])
    with pytest.raises(ModelError, match=r"node 'sum': fails on an input of shape \[2, 3\] \(The size of tensor a"):
        check_runs(module, [torch.zeros(2, 3)])


def test_constants_that_do_not_fit_each_other() -> None:
    model = network("[product] p = MatMul(a, b) y = Mul(x, p)")
    for name, shape in {"a": (2, 3), "b": (2, 3)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    with pytest.raises(ModelError, match=r"node 'product' \(MatMul, opset 17\): its constant inputs do not fit"):
        import_model(model)
