"""What cannot be imported is refused with the place, what was found and the remedy."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pdq_export.errors import ModelError, UnsupportedOperatorError
from pdq_export.frontend import find_unsupported, import_model, supported_operators
from pdq_export.frontend.node import Call, OnnxNode
from pdq_export.frontend.registry import converter, table

from .models import one_node

X = np.ones((1, 2, 4, 4), np.float32)


def model_of(node: onnx.NodeProto, opset: int = 17, domain: str = "") -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(helper.make_graph([node], "g", [value], [result]), opset_imports=imports)


def test_an_operator_without_a_converter() -> None:
    node = helper.make_node("Acosh", ["x"], ["y"], name="/layer1/act")
    with pytest.raises(UnsupportedOperatorError, match=r"^node '/layer1/act' \(Acosh, opset 17\): not supported; .+"):
        import_model(model_of(node))


def test_a_node_without_a_name() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"^the node that computes 'y' \(Acosh, opset 17\)"):
        import_model(model_of(helper.make_node("Acosh", ["x"], ["y"])))


def test_an_operator_newer_than_the_opset() -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], name="act")
    with pytest.raises(UnsupportedOperatorError, match=r"node 'act' \(Gelu, opset 17\): not an operator of this"):
        import_model(model_of(node))


def test_an_operator_of_another_domain() -> None:
    node = helper.make_node("Act", ["x"], ["y"], name="act", domain="com.example")
    with pytest.raises(UnsupportedOperatorError, match=r"node 'act' \(com.example.Act, opset 1\)"):
        import_model(model_of(node, domain="com.example"))


def test_a_version_without_a_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    from pdq_export.frontend import registry

    supported_operators()
    without = {key: value for key, value in table().items() if key != ("", "Relu", 6)}
    monkeypatch.setattr(registry, "_TABLE", without)
    with pytest.raises(UnsupportedOperatorError, match=r"version 6 of this operator.*an opset from 13 on"):
        import_model(model_of(helper.make_node("Relu", ["x"], ["y"]), 11))


def test_control_flow() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Identity (x) },
                    else_branch = e () => (float[2] b) { b = Neg (x) }>
    }
    """
    with pytest.raises(UnsupportedOperatorError, match="control flow is not supported"):
        import_model(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (one_node("BatchNormalization", [X, *[np.ones(2, np.float32)] * 4], 15, {"training_mode": 1}), "training mode"),
        (one_node("Dropout", [X, None, np.array(True)], 13, constants=(2,)), "training_mode"),
        (one_node("Dropout", [X, None, np.array(False)], 13), "training_mode"),
        (one_node("Cast", [X], 19, {"to": TensorProto.FLOAT8E5M2}), "FLOAT8E5M2"),
        (one_node("Pad", [X], 9, {"pads": [0] * 8, "mode": "mirror"}), "mirror"),
        (one_node("Conv", [np.ones((1, 1), np.float32)] * 2, 11, constants=(1,)), "weight of shape"),
        (one_node("MaxPool", [X], 12, {"kernel_shape": [1, 1, 1, 1]}), "kernel_shape"),
    ],
)
def test_attributes(model: onnx.ModelProto, found: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=rf"^node '/layer/op' \(\w+, opset \d+\): .*{found}.*; \w+"):
        import_model(model)


@pytest.mark.parametrize("name", ["mode", "nearest_mode", "coordinate_transformation_mode"])
def test_values_that_resize_does_not_have(name: str) -> None:
    scales = np.ones(4, np.float32)
    with pytest.raises(UnsupportedOperatorError, match=f"{name} 'spline' is unknown; use one of"):
        import_model(one_node("Resize", [X, None, scales], 13, {name: "spline"}, constants=(2,)))


@pytest.mark.parametrize("opset", [8, 1000])
def test_opsets(opset: int) -> None:
    model = model_of(helper.make_node("Relu", ["x"], ["y"]))
    model.opset_import[0].version = opset
    with pytest.raises(ModelError, match=f"opset {opset}; expected 9 to"):
        import_model(model)


def test_element_types() -> None:
    model = model_of(helper.make_node("Identity", ["x"], ["y"]))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(ModelError, match="input 'x': element type STRING; expected floating point"):
        import_model(model)
    model = model_of(helper.make_node("Add", ["x", "w"], ["y"]))
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT8E5M2, [1], [1.0]))
    with pytest.raises(ModelError, match="constant 'w': element type FLOAT8E5M2"):
        import_model(model)


def test_data_in_another_file() -> None:
    model = model_of(helper.make_node("Add", ["x", "w"], ["y"]))
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    model.graph.initializer.append(outside)
    with pytest.raises(ModelError, match="constant 'w': its data lie in another file"):
        import_model(model)


def test_sparse_constants() -> None:
    model = model_of(helper.make_node("Add", ["x", "w"], ["y"]))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    with pytest.raises(ModelError, match="constant 'w' is sparse"):
        import_model(model)
    node = helper.make_node("Constant", [], ["y"], name="c", value_string="text")
    with pytest.raises(UnsupportedOperatorError, match=r"node 'c'.*text or sparse"):
        import_model(model_of(node))


def test_a_tensor_that_nothing_computes() -> None:
    with pytest.raises(ModelError, match="tensor 'z' is read before any node computes it"):
        import_model(model_of(helper.make_node("Add", ["x", "z"], ["y"])))


def test_registering_twice_or_a_version_that_does_not_exist() -> None:
    supported_operators()

    def convert(node: OnnxNode) -> Call:
        raise AssertionError(node)

    with pytest.raises(ValueError, match="Relu version 14: registered twice"):
        converter("Relu", 14)(convert)
    with pytest.raises(ValueError, match="Relu has no version 15"):
        converter("Relu", 15)(convert)
    assert table()["", "Relu", 14] is not convert


def test_everything_that_is_unsupported_is_found() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> m (float[N] x) => (float[N] y)
        { a = Acosh(x) b = Relu(a) c = Gelu(b) d, e = Unique(c) f = Cast <to = 1> (e) y = Add(d, f) }"""
    )
    for node in model.graph.node:
        node.name = node.output[0]
    found = {name: (str(error).split(":")[0], error.found) for name, error in find_unsupported(model).items()}
    assert found == {
        "a": ("node 'a' (Acosh, opset 17)", "not supported"),
        "c": ("node 'c' (Gelu, opset 17)", "not an operator of this ONNX opset"),
        "d": ("node 'd' (Unique, opset 17)", "not supported"),
    }
    assert find_unsupported(model_of(helper.make_node("Relu", ["x"], ["y"]))) == {}
