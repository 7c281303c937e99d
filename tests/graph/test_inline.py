"""Local functions are inlined as onnxruntime, which runs the file as it is, understands them."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from onnx import AttributeProto, helper

from pdq_export.errors import ModelError
from pdq_export.frontend import import_model
from pdq_export.graph.passes import inline, normalize

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("my", 1)]
SHAPE = (2, 4, 4)


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: x for value, x in zip(session.get_inputs(), inputs, strict=True)})


def branch(rng: np.random.Generator) -> onnx.GraphProto:
    """Adds a number to the tensor ``t`` of the graph around it."""
    add = [
        helper.make_node("Constant", [], ["k"], value_float=float(rng.normal())),
        helper.make_node("Identity", ["k"], ["branch"]),
    ]
    return helper.make_graph(add, "b", [], [helper.make_tensor_value_info("branch", 1, None)])


# Attributes of several types: their type, what they default to where nobody gives them, a value, and the node.
KINDS = {
    "alpha": (AttributeProto.FLOAT, lambda r: float(r.uniform(-1, 1)), "LeakyRelu"),
    "axis": (AttributeProto.INT, lambda r: int(r.integers(0, 3)), "Softmax"),
    "perm": (AttributeProto.INTS, lambda r: [0, *(int(i) + 1 for i in r.permutation(2))], "Transpose"),
    "approximate": (AttributeProto.STRING, lambda r: str(r.choice(["none", "tanh"])), "Gelu"),
    "value_floats": (AttributeProto.FLOATS, lambda r: r.normal(size=4).tolist(), "Constant"),
    "value": (AttributeProto.TENSOR, lambda r: onnx.numpy_helper.from_array(r.normal(size=4).astype("f")), "Constant"),
    "else_branch": (AttributeProto.GRAPH, branch, "If"),
}
NEEDED = ("value_floats", "value", "else_branch")


def reference(name: str, kind: str) -> AttributeProto:
    return AttributeProto(name=name, type=KINDS[kind][0], ref_attr_name=f"my_{kind}")


def primitive(kind: str, rng: np.random.Generator, source: str, target: str, *, refer: bool) -> list[onnx.NodeProto]:
    """Nodes that make ``target`` of ``source``, with an attribute of the kind, that of the function or an own one."""
    op_type = KINDS[kind][2]
    own = reference(kind, kind) if refer else helper.make_attribute(kind, KINDS[kind][1](rng))
    if op_type == "Constant":
        nodes = [
            helper.make_node("Constant", [], [f"{target}_c"]),
            helper.make_node("Add", [source, f"{target}_c"], [target]),
        ]
    elif op_type == "If":
        nodes = [
            helper.make_node("If", [f"{target}_no"], [f"{target}_c"], then_branch=branch(rng)),
            helper.make_node("Constant", [], [f"{target}_no"], value=onnx.numpy_helper.from_array(np.array(False))),
            helper.make_node("Add", [source, f"{target}_c"], [target]),
        ]
        nodes = [nodes[1], nodes[0], nodes[2]]
        nodes[1].attribute.append(own)
        return nodes
    else:
        nodes = [helper.make_node(op_type, [source], [target])]
    nodes[0].attribute.append(own)
    return nodes


def call(
    function: onnx.FunctionProto, rng: np.random.Generator, source: str, target: str, outer: set[str]
) -> onnx.NodeProto:
    """A call that gives some attributes, passes on some of the function around it, and leaves out the others."""
    node = helper.make_node(function.name, [source], [target], domain="my")
    for name in (*function.attribute, *(a.name for a in function.attribute_proto)):
        kind = name.removeprefix("my_")
        how = rng.integers(3)
        if how == 0:
            node.attribute.append(helper.make_attribute(name, KINDS[kind][1](rng)))
        elif how == 1 and name in outer:
            node.attribute.append(reference(name, kind))
    return node


def random_model(seed: int) -> onnx.ModelProto:
    """A graph of functions that call each other, in subgraphs as well; inner tensors have the names of outer ones."""
    rng = np.random.default_rng(seed)
    functions: list[onnx.FunctionProto] = []
    for number in range(rng.integers(1, 5)):
        kinds = [kind for kind in KINDS if rng.random() < 0.5]
        defaults = [kind for kind in kinds if kind in NEEDED or rng.random() < 0.5]
        outer = {f"my_{kind}" for kind in kinds}
        nodes, last = [], "x"
        for step in range(rng.integers(1, 4)):
            target = f"t{step}"
            if functions and rng.random() < 0.5:
                nodes.append(call(functions[rng.integers(len(functions))], rng, last, target, outer))
            else:
                kind = str(rng.choice(list(KINDS)))
                nodes += primitive(kind, rng, last, target, refer=kind in kinds)
            last = target
        nodes.append(helper.make_node("Identity", [last], ["y"]))
        protos = [helper.make_attribute(f"my_{kind}", KINDS[kind][1](rng)) for kind in defaults]
        others = [f"my_{kind}" for kind in kinds if kind not in defaults]
        functions.append(
            helper.make_function(
                "my", f"F{number}", ["x"], ["y"], nodes, OPSETS, attributes=others, attribute_protos=protos
            )
        )
    nodes, last = [], "x"
    for step in range(rng.integers(1, 4)):
        inner = call(functions[rng.integers(len(functions))], rng, last, f"t{step}", set())
        if rng.random() < 0.3:
            then = copy.deepcopy(inner)
            then.output[0] = "then"
            otherwise = helper.make_node("Relu", [last], ["other"])
            graphs = [
                helper.make_graph([n], "g", [], [helper.make_tensor_value_info(n.output[0], 1, None)])
                for n in (then, otherwise)
            ]
            inner = helper.make_node("If", ["c"], [f"t{step}"], then_branch=graphs[0], else_branch=graphs[1])
        nodes.append(inner)
        last = f"t{step}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 4, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(np.array(bool(rng.integers(2))), "c")],
    )
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions, ir_version=9)


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_attributes_are_those_that_onnxruntime_takes(seed: int) -> None:
    model = random_model(seed)
    x = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    try:
        (expected,) = run(model, x)
    except Exception:  # its shape inference knows no defaults of Constant in functions of functions
        reject()
    before = model.SerializeToString(deterministic=True)
    inlined = inline.run(model)
    assert model.SerializeToString(deterministic=True) == before
    assert not inlined.functions
    assert not any(node.domain for node in inlined.graph.node)
    (found,) = run(normalize.run(inlined), x)
    np.testing.assert_array_equal(found, expected)


def parsed(graph: str, *functions: str, imports: str = '"": 17, "my": 1') -> onnx.ModelProto:
    return onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{imports}]> " + " ".join((graph, *functions)))


X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "model",
    [
        parsed(
            "g (float[2,3] x) => (float[2,3] y) { c = Constant<value_float = 0.25>() t = my.f(x, , c) y = my.f(t, c) }",
            """<domain: "my", opset_import: ["": 17]> f (a, low, high) => (b) {
                w = Constant<value_float = 0.5> () t = Add(a, w) b = Clip(t, low, high) }""",
        ),
        parsed(
            "g (float[2,3] x) => (float[2,3] y) { w, u = my.f(x) y, t = my.f(u) }",
            '<domain: "my", opset_import: ["": 17]> f (x) => (t, y) { u = Elu(x) t = Neg(u) y = Add(u, t) }',
        ),
        parsed(
            "g (float[2,3] x) => (float[2,3] y) { y = my.f(x) }",
            '<domain: "my", opset_import: ["": 17, "com.microsoft": 1]> f (x) => (y) { y = com.microsoft.Gelu(x) }',
        ),
    ],
    ids=["inputs left out", "outputs and names alike", "a domain of its own"],
)
def test_what_else_functions_may_do(model: onnx.ModelProto) -> None:
    expected = run(model, X)
    for found, wanted in zip(run(normalize.run(model), X), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_frontend_takes_functions_as_they_are() -> None:
    model = parsed(
        "g (float[2,3] x) => (float[2,3] y) { y = my.f(x) }",
        """<domain: "my", opset_import: ["": 17]> f <slope: float = 0.5> (x) => (y) {
            y = LeakyRelu<alpha: float = @slope>(x) }""",
    )
    (found,) = import_model(model)(torch.from_numpy(X))
    np.testing.assert_allclose(found.numpy(), run(model, X)[0], rtol=1e-6)
    assert model.functions


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (["f (x) => (y) { y = my.g(x) }", "g (x) => (y) { y = my.f(x) }"], "calls itself"),
        (
            [f"f{'' if i == 0 else i} (x) => (y) {{ t = my.f{i + 1}(x) y = my.f{i + 1}(t) }}" for i in range(40)],
            "1,000,000",
        ),
        ([f"f{'' if i == 0 else i} (x) => (y) {{ y = my.f{i + 1}(x) }}" for i in range(120)], "100 functions"),
    ],
    ids=["cycle", "number", "depth"],
)
def test_functions_without_an_end(functions: list[str], message: str) -> None:
    texts = [f'<domain: "my", opset_import: ["": 17, "my": 1]> {text}' for text in functions]
    last = f'<domain: "my", opset_import: ["": 17]> f{len(texts)} (x) => (y) {{ y = Relu(x) }}'
    with pytest.raises(ModelError, match=message):
        inline.run(parsed("m (float[2,3] x) => (float[2,3] y) { y = my.f(x) }", *texts, last))
