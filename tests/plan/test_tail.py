"""Which nodes stay as they are behind the quantized part, and what is left without them."""

import onnx

from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import tidy
from pdq_export.plan.points import find_layers
from pdq_export.plan.tail import find_tail, without_tail

CONV = "c = Conv(x, w) r = Relu(c)"


def model_of(body: str, outputs: str, batch: str = "N") -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[{batch},2,4,4] x) => ({outputs})
        <float[2,2,1,1] w = {{1, 2, 3, 4}}, float two = {{2}}, int64[1] rows = {{0}}> {{ {body} }}"""
    )
    return tidy.infer_shapes(tidy.name_nodes(tidy.remove_unused(model)))


def cut(model: onnx.ModelProto, *unsupported: str) -> tuple[list[str], list[str], list[str]]:
    """Operators of the tail, operators and outputs of what is left; nodes are ``unsupported`` by operator."""
    index = GraphIndex(model)
    found = {node.name: "not supported" for node in model.graph.node if node.op_type in unsupported}
    tail = find_tail(index, found, find_layers(index))
    core = without_tail(model, tail)
    left = [node.op_type for node in core.graph.node]
    return [index.nodes[name].op_type for name in tail], left, [value.name for value in core.graph.output]


def test_everything_that_hangs_on_an_unsupported_node() -> None:
    model = model_of(f"{CONV} a = Erf(r) b = Exp(a) y = Add(b, r) z = Tanh(r)", "float[N,2,4,4] y, float[N,2,4,4] z")
    assert cut(model, "Erf") == (["Erf", "Exp", "Add"], ["Conv", "Relu", "Tanh"], ["z", "r"])
    reasons = find_tail(GraphIndex(model), {"Erf_2": "not supported"}, find_layers(GraphIndex(model)))
    assert reasons == {
        "Erf_2": "not supported, and no quantized layer depends on it",
        "Exp_3": "reads what 'Erf_2' computes",
        "Add_4": "reads what 'Exp_3' computes",
    }


def test_what_a_layer_depends_on_is_no_tail() -> None:
    model = model_of(f"{CONV} a = Erf(r) d = Conv(a, w) y = Exp(d)", "float[N,2,4,4] y")
    assert cut(model, "Erf")[0] == []
    assert cut(model, "Erf", "Exp") == (["Exp"], ["Conv", "Relu", "Erf", "Conv"], ["d"])
    assert without_tail(model, {}) is model


def test_integers_and_merged_images_that_lead_to_it() -> None:
    model = model_of(f"{CONV} a = ArgMax(r) b = ReduceMax <keepdims = 0> (r) y = Foo(a, b)", "float[N,2,4,4] y")
    assert cut(model, "Foo") == (["Foo", "ReduceMax", "ArgMax"], ["Conv", "Relu"], ["r"])
    squeezed = model_of(f"{CONV} g = Squeeze(r, rows) s = Sigmoid(g) y = Foo(s)", "float[M] y", batch="1")
    assert cut(squeezed, "Foo") == (["Foo", "Sigmoid", "Squeeze"], ["Conv", "Relu"], ["r"])


def test_a_shape_needs_no_values() -> None:
    model = model_of(f"{CONV} s = Shape(c) t = Tanh(r) y = Foo(t, s)", "float[N,2,4,4] y")
    assert cut(model, "Foo") == (["Foo"], ["Conv", "Relu", "Tanh"], ["t"])


def test_what_a_branch_captures_is_read_by_it() -> None:
    model = model_of(
        f"""{CONV} l = Tanh(c) m = ReduceMax <keepdims = 0> (l) p = Greater(m, two)
        y = If (p) <then_branch = a () => (float[N,2,4,4] t) {{ t = Mul(r, two) }},
                    else_branch = b () => (float[N,2,4,4] e) {{ e = Neg(r) }} >""",
        "float[N,2,4,4] y",
    )
    assert cut(model, "If") == (["If", "Greater", "ReduceMax"], ["Conv", "Relu", "Tanh"], ["l", "r"])


def test_nothing_to_compare() -> None:
    model = model_of("a = Erf(x) s = Shape(a) y = Foo(s)", "float[N] y")
    index = GraphIndex(model)
    assert find_tail(index, {node.name: "?" for node in model.graph.node}, []) == {}
