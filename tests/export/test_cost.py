"""What is counted for each weight: entries of the file, each once."""

import onnx
import pytest

from pdq_export import calib_data
from pdq_export.commands.dry_run import dry_run
from pdq_export.export.cost import ConstantBytes, constant_bytes, entry_bytes
from pdq_export.plan import PlanOptions
from pdq_export.spec import Layer
from pdq_export.work import open_model, prepare_and_plan

from ..onnx_text import fill, name_nodes, parse


def layer(node: str, weight: str) -> Layer:
    return Layer(node=node, op_type="MatMul", input="", weight=weight, bias=None, output="")


def counted(body: str, **shapes: tuple[int, ...]) -> tuple[onnx.GraphProto, ConstantBytes]:
    """Of a model whose layers are a and b, with the weights v and w in the plan."""
    graph = name_nodes(fill(parse(body, "float[N,4] x", "float[N,4] y"), shapes)).graph
    return graph, constant_bytes(graph, [layer("a", "v"), layer("b", "w")])


def size(graph: onnx.GraphProto, *names: str) -> int:
    """Of the initializers, and of the nodes with such an output."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.output[0]: node for node in graph.node}
    return sum(entry_bytes(tensors.get(name, nodes.get(name))) for name in names)


def test_what_one_layer_alone_reads_is_its_weights_and_the_rest_is_shared_or_nobodys() -> None:
    body = """v2 = Mul(v1, two) a = MatMul(x, v2) r = Relu(a) w2 = Mul(w1, two) b = MatMul(r, w2)
        c = Add(b, three) y = Mul(c, four)"""
    graph, found = counted(body, v1=(4, 4), w1=(4, 4), two=(1,), three=(4,), four=(4,))
    assert found.weights == {"v": size(graph, "v1", "v2"), "w": size(graph, "w1", "w2")}
    assert found.shared == {"two": size(graph, "two")}


def test_what_others_read_belongs_to_no_weight() -> None:
    body = "a = MatMul(x, v1) s = Mul(v1, two) q = MatMul(a, s) b = MatMul(q, w1) y = Relu(b)"
    graph, found = counted(body, v1=(4, 4), w1=(4, 4), two=(1,))
    assert (found.weights, found.shared) == ({"v": 0, "w": size(graph, "w1")}, {})


def test_layers_that_share_a_weight_count_it_once() -> None:
    model = parse("a = MatMul(x, v1) y = MatMul(a, v1)", "float[N,4] x", "float[N,4] y")
    graph = name_nodes(fill(model, {"v1": (4, 4)})).graph
    found = constant_bytes(graph, [layer("a", "v"), layer("y", "v")])
    assert found.weights == {"v": size(graph, "v1")}


def test_what_is_split_is_divided() -> None:
    body = """p = Mul(packed, two) v2, w2 = Split(p, sizes) a = MatMul(x, v2) r = Relu(a) b = MatMul(r, w2)
        y = Relu(b)"""
    model = name_nodes(fill(parse(body, "float[N,4] x", "float[N,4] y"), {"packed": (16, 4), "two": (1,)}))
    model.graph.initializer.append(onnx.helper.make_tensor("sizes", onnx.TensorProto.INT64, [2], [4, 12]))
    found = constant_bytes(model.graph, [layer("a", "v"), layer("b", "w")])
    divided = [size(model.graph, name) for name in ("packed", "p", "v2")]
    assert found.weights["v"] == sum(entry // 4 for entry in divided)
    assert sum(found.weights.values()) == sum(divided)
    assert found.shared == {"two": size(model.graph, "two"), "sizes": size(model.graph, "sizes")}


@pytest.mark.parametrize("target", ["ort", "native", "qcdq", "qonnx", "tensorrt"])
def test_every_target_has_its_weights_where_they_are_looked_for(target: str) -> None:
    file, _ = open_model(calib_data.path("fashion_resnet.onnx"))
    bits = "8/8" if target == "tensorrt" else "4/4"
    prepared, plan, _ = prepare_and_plan(file.parse(), PlanOptions.of(bits), target=target)
    written = dry_run(prepared, plan, target).model
    found = constant_bytes(written.graph, plan.layers)
    entries = [*written.graph.node, *written.graph.initializer]
    assert set(found.weights) == {layer.weight for layer in plan.layers}
    stored = {name: plan.points[name].bits if target == "ort" else 4 if bits == "4/4" else 8 for name in found.weights}
    for name, taken in found.weights.items():
        weights = prepared.index.constant(name)
        assert weights is not None
        assert taken > weights.size * min(stored[name], 8) / 8
    assert sum(found.weights.values()) + sum(found.shared.values()) < sum(map(entry_bytes, entries))
