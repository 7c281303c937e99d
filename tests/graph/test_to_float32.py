"""Models in float16, bfloat16 and float64 become float32 inside."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from pdq_export.graph.passes import to_float32
from pdq_export.graph.prepare import prepare

from .models import assert_same, operators, random

TYPES = {"float16": np.float16, "double": np.float64, "float": np.float32}


def network(kind: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g ({kind}[N, 2] x) => ({kind}[N, 3] y, {kind}[N, 3] r)
        {{
            c = Gemm(x, w, b)
            r = Relu(c)
            f = Cast <to = 1> (r)
            h = Cast <to = {getattr(TensorProto, kind.upper())}> (f)
            y = Mul(h, k)
        }}"""
    )
    for name, shape in {"w": (2, 3), "b": (3,), "k": (1,)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(*shape).astype(TYPES[kind]), name))
    return model


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_the_interface_stays_and_everything_inside_is_float32(kind: str) -> None:
    model = network(kind)
    prepared = prepare(model).model
    assert (prepared.graph.input, prepared.graph.output) == (model.graph.input, model.graph.output)
    assert {tensor.data_type for tensor in prepared.graph.initializer} == {TensorProto.FLOAT}
    inner = {value.type.tensor_type.elem_type for value in prepared.graph.value_info}
    assert inner == {TensorProto.FLOAT}
    assert operators(prepared) == {"Cast": 3, "Gemm": 1, "Relu": 1, "Mul": 1}
    x = np.random.default_rng(0).standard_normal((2, 2)).astype(TYPES[kind])
    assert_same(model, prepared, rtol=2e-3, atol=2e-3, x=x)


def test_a_float32_model_is_left_alone() -> None:
    model = network("float")
    before = model.SerializeToString()
    assert to_float32.run(model) is model
    assert model.SerializeToString() == before


def test_bfloat16_and_subgraphs() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (bfloat16[2] x, bool p) => (bfloat16[2] y)
        {
            y = If (p) <
                then_branch = a () => (bfloat16[2] t) { t = Relu(x) },
                else_branch = b () => (bfloat16[2] e) { k = Constant <value = bfloat16[1] {16384}> () e = Mul(x, k) }
            >
        }"""
    )
    wide = to_float32.run(model)
    onnx.checker.check_model(wide, full_check=True)
    choice = next(node for node in wide.graph.node if node.op_type == "If")
    for attribute in choice.attribute:
        assert attribute.g.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
        assert "x" not in {name for node in attribute.g.node for name in node.input}
