import numpy as np
import onnx
import pytest

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex, attribute, attributes, describe, opset_version, optional_input

from .models import build, node, random


@pytest.fixture
def index() -> GraphIndex:
    model = build(
        [
            node("Conv", "x w", "c", "conv", strides=[2, 2], auto_pad="SAME_UPPER"),
            node("Relu", "c", "r", "relu"),
            node("Mul", "r r", "m", "square"),
            node("Add", "m r", "y", "add"),
        ],
        inputs={"x": ["N", 3, None, 8]},
        outputs={"y": ["N", 4, None, 4]},
        constants={"w": random(4, 3, 3, 3)},
    )
    return GraphIndex(onnx.shape_inference.infer_shapes(model))


def test_producers_and_consumers(index: GraphIndex) -> None:
    assert index.producer["r"].name == "relu"
    assert "x" not in index.producer
    assert [n.name for n in index.consumers("r")] == ["square", "square", "add"]
    assert index.consumers("y") == []
    assert [n.name for n in index.successors(index.nodes["relu"])] == ["square", "add"]
    assert [n.name for n in index.predecessors(index.nodes["add"])] == ["square", "relu"]


def test_sole_consumer(index: GraphIndex) -> None:
    reader = index.sole_consumer("c")
    assert reader is not None
    assert reader.name == "relu"
    assert index.sole_consumer("r") is None
    assert index.sole_consumer("y") is None


def test_constants_are_read_only_and_have_shape_and_type(index: GraphIndex) -> None:
    weight = index.constant("w")
    assert weight is not None
    np.testing.assert_array_equal(weight, random(4, 3, 3, 3))
    assert not weight.flags.writeable
    assert index.constant("x") is None
    assert index.constant(None) is None
    assert index.shape("w") == (4, 3, 3, 3)
    assert index.dtype("w") == np.float32
    assert index.is_constant("w")
    assert not index.is_constant("x")


def test_shapes_say_which_axes_are_dynamic(index: GraphIndex) -> None:
    assert index.shape("x") == ("N", 3, None, 8)
    assert index.static_shape("x") is None
    assert index.static_shape("w") == (4, 3, 3, 3)
    assert index.rank("r") == 4
    assert index.shape("nobody") is None
    assert index.rank("nobody") is None
    assert index.dtype("nobody") is None
    assert index.dtype("r") == np.float32


def test_subgraphs_are_readers() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, bool p) => (float[2] y)
        {
            r = Relu(x)
            z = Neg(r)
            y = If (p) <
                then_branch = a () => (float[2] t) { t = Abs(r) },
                else_branch = b () => (float[2] z) { }
            >
        }"""
    )
    index = GraphIndex(model)
    assert [n.op_type for n in index.consumers("r")] == ["Neg", "If"]
    assert index.sole_consumer("r") is None
    assert [n.op_type for n in index.consumers("z")] == ["If"]


def test_attributes(index: GraphIndex) -> None:
    conv = index.nodes["conv"]
    assert attributes(conv) == {"strides": [2, 2], "auto_pad": "SAME_UPPER"}
    assert attribute(conv, "strides") == [2, 2]
    assert attribute(conv, "group", 1) == 1
    assert attribute(conv, "group") is None


def test_optional_inputs() -> None:
    resize = node("Resize", "x - scales", "y")
    assert [optional_input(resize, i) for i in range(4)] == ["x", None, "scales", None]


def test_nodes_are_described_by_name_or_output() -> None:
    assert describe(node("Relu", "x", "y", "act")) == "node 'act' (Relu)"
    assert describe(node("Relu", "x", "y")) == "unnamed Relu node writing 'y'"


def test_a_model_without_the_default_domain_is_refused() -> None:
    model = onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("com.microsoft", 1)])
    with pytest.raises(ModelError, match="no opset of the default domain"):
        opset_version(model)
