"""No operator mixes devices: shapes are computed on the CPU while the data are elsewhere.

The "meta" device stands for an accelerator: it refuses to be mixed with the CPU and cannot be read.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pdq_export.frontend import import_model

from .models import Array, one_node
from .operator_cases import Case, cases, inputs_of, model_of


def check(model: onnx.ModelProto, inputs: list[Array]) -> None:
    tensors = [torch.from_numpy(np.array(value)) for value in inputs]
    module = import_model(model)
    expected = module(*tensors)
    found = module.to("meta")(*(tensor.to("meta") for tensor in tensors))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device.type == "meta"
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("found", [pytest.param(c, id=f"{c[0]}-{number}") for number, c in enumerate(cases())])
def test_operators(found: Case) -> None:
    check(model_of(found), inputs_of(found))


WHOLE = np.arange(1, 7, dtype=np.int64).reshape(2, 3)
TRUTH = WHOLE > 3


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        *((name, [WHOLE, WHOLE], {}) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Div")),
        *((name, [TRUTH, TRUTH], {}) for name in ("And", "Or", "Xor")),
        ("Not", [TRUTH], {}),
        *((name, [WHOLE.astype(np.float32)], {}) for name in ("IsNaN", "IsInf", "Floor", "Ceil", "Round", "Sign")),
        *((name, [WHOLE], {"axis": 1}) for name in ("ArgMax", "ArgMin")),
    ],
)
def test_operators_without_gradient(op_type: str, inputs: list[Array], attributes: dict[str, Any]) -> None:
    check(one_node(op_type, inputs, 19, attributes), inputs)
    if len(inputs) == 2:
        check(one_node(op_type, inputs, 19, attributes, constants=(1,)), inputs[:1])


SHAPES_MEET_DATA = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3] x) => (float[N, 3] a, float[N, 3] b, float[M, 3] c, float[N, 3] d)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, float third = {0.333}>
{
    shape = Shape (x)
    batch = Slice (shape, zero, one)
    float = Cast <to = 1> (batch)
    scaled = Mul (float, third)
    a = Add (x, scaled)
    zeros = ConstantOfShape (shape)
    b = Max (zeros, x)
    c = Concat <axis = 0> (x, zeros)
    larger = Greater (float, third)
    d = Where (larger, x, zeros)
}
"""


def test_shapes_that_meet_data_follow_them() -> None:
    check(onnx.parser.parse_model(SHAPES_MEET_DATA), [np.ones((2, 3), np.float32)])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet20_cifar10", (2, 3, 32, 32)),
        ("efficientnet_lite0_imagenet", (1, 3, 224, 224)),
        ("ch_ppocr_mobile_v2.0_cls_infer", (2, 3, 48, 96)),
        ("ch_PP-OCRv4_det_infer", (1, 3, 64, 96)),
    ],
)
def test_real_models(name: str, shape: tuple[int, ...], shared_models: Path) -> None:
    check(onnx.load(shared_models / f"{name}.onnx"), [np.zeros(shape, np.float32)])
