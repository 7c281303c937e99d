import numpy as np
import onnx
import pytest

from pdq_export.errors import ModelError
from pdq_export.graph.prepare import prepare

from .models import build, node, random


def test_nothing_to_quantize() -> None:
    model = build(
        [node("MaxPool", "x", "p", kernel_shape=[2, 2]), node("Conv", "p w", "y")],
        inputs={"x": [1, 3, 4, 4], "w": [2, 3, 1, 1]},
        outputs={"y": [1, 2, 3, 3]},
    )
    with pytest.raises(ModelError, match="nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul multiplies"):
        prepare(model)


def test_weights_computed_from_constants_count() -> None:
    model = build(
        [node("Mul", "a b", "w"), node("Conv", "x w", "y")],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 2, 4, 4]},
        constants={"a": random(2, 3, 1, 1), "b": random(1)},
    )
    assert [n.op_type for n in prepare(model).model.graph.node] == ["Conv"]


def test_weights_that_become_infinite_are_refused() -> None:
    model = build(
        [node("Div", "a b", "w"), node("Conv", "x w", "y", "conv")],
        inputs={"x": [1, 3, 4, 4]},
        outputs={"y": [1, 2, 4, 4]},
        constants={"a": random(2, 3, 1, 1), "b": np.zeros(1, np.float32)},
    )
    with pytest.raises(ModelError, match=r"node 'conv' \(Conv\): constant '.*' holds 6 NaN or infinite values"):
        prepare(model)


def test_weights_that_overflow_when_folded_are_refused() -> None:
    constants = {"w": np.full((1, 1, 1, 1), 1e30, np.float32), "k": np.array(1e30, np.float32)}
    model = build(
        [node("Conv", "x w", "c", "conv"), node("Relu", "k", "r"), node("Mul", "c r", "y")],
        inputs={"x": [1, 1, 4, 4]},
        outputs={"y": [1, 1, 4, 4]},
        constants=constants,
    )
    with pytest.raises(ModelError, match=r"node 'conv' \(Conv\): constant '.*' holds 1 NaN or infinite values"):
        prepare(model)


def test_integer_weights_are_refused() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int32[1, 1] x) => (int32[1, 1] y) <int32[1, 1] w = {1}> { [product] y = MatMul(x, w) }"""
    )
    with pytest.raises(ModelError, match=r"\(int32 model\); expected float32; convert the model to float32 first"):
        prepare(model)


def conditional(condition: str, value: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 1, 2, 2] x{condition}) => (float[1, 1, 2, 2] y) <float[1, 1, 1, 1] w = {{2}}{value}>
        {{
            c = Conv(x, w)
            [choice] y = If (p) <
                then_branch = a () => (float[1, 1, 2, 2] t) {{ t = Relu(c) }},
                else_branch = b () => (float[1, 1, 2, 2] e) {{ e = Neg(c) }}
            >
        }}"""
    )


def test_control_flow_is_kept_with_what_it_captures() -> None:
    prepared = prepare(conditional(", bool p", ", float[2] unused = {1, 2}")).model
    assert [n.op_type for n in prepared.graph.node] == ["Conv", "If"]
    assert [tensor.name for tensor in prepared.graph.initializer] == ["w"]
    onnx.checker.check_model(prepared, full_check=True)


def test_control_flow_with_a_constant_condition_is_folded() -> None:
    assert [n.op_type for n in prepare(conditional("", ", bool p = {1}")).model.graph.node] == ["Conv", "Relu"]
