"""What counts as a layer in a file, as onnxruntime optimizes it."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pdq_export.validate import count_kernels


def counted(text, **weights):
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()
    )
    return count_kernels(model.SerializeToString())


def test_a_product_of_two_activations_is_no_layer():
    text = """g (float[N,2,4] x) => (float[N,2,4] y) {
        t = Transpose<perm = [0, 2, 1]>(x) a = MatMul(x, t) b = MatMul(a, x) y = MatMul(b, w) }"""
    found = counted(text, w=(4, 4))
    assert sum(found.floating.values()) == 1
    assert found.integer == {}


def test_a_weight_may_stand_first():
    assert counted("g (float[4,N] x) => (float[3,N] y) { y = MatMul(w, x) }", w=(3, 4)).floating == {"MatMul": 1}


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_count(op_type, gates):
    text = f"g (float[T,N,3] x) => (float[T,1,N,2] y) {{ y = {op_type}<hidden_size = 2>(x, w, r) }}"
    assert counted(text, w=(1, 2 * gates, 3), r=(1, 2 * gates, 2)).floating == {op_type: 1}


def test_layers_inside_if_and_loop_count():
    """A Conv in each branch, whose weight lies outside, and a MatMul in the body of a Loop."""
    text = """g (float[N,3,6,6] x, float[4,4] m) => (float[N,2,4,4] y, float[4,4] z) {
        s = ReduceMean<keepdims = 0>(x) limit = Constant<value_float = 0.0>() c = Greater(s, limit)
        y = If(c)<then_branch = g1 () => (float[N,2,4,4] a) { a = Conv(x, w) },
                  else_branch = g2 () => (float[N,2,4,4] b) { n = Neg(x) b = Conv(n, w) }>
        k = Constant<value_int = 3>()
        z = Loop(k, , m)<body = g3 (int64 i, bool go, float[4,4] p) => (bool on, float[4,4] q) {
            on = Identity(go) q = MatMul(p, v) }>
    }"""
    found = counted(text, w=(2, 3, 3, 3), v=(4, 4))
    assert sum(found.floating.values()) == 3, found


def test_integers_of_two_activations_are_no_layer():
    """QLinearMatMul of two activations; and one with a weight."""
    nodes = [
        helper.make_node("QLinearMatMul", ["x", "s", "z", "x", "s", "z", "s", "z"], ["a"]),
        helper.make_node("QLinearMatMul", ["a", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
    ]
    arrays = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.ones((4, 4), np.uint8)}
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [4, 4]) for name in "xy"]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert sum(count_kernels(model.SerializeToString()).integer.values()) == 1


def test_float_layers_have_the_names_of_the_file() -> None:
    """However onnxruntime fuses and lays them out: with BatchNormalization, an activation, a bias."""
    text = """g (float[N,3,8,8] x) => (float[N,5] y) {
        [first] a = Conv(x, w) [norm] n = BatchNormalization(a, one, zero, zero, one) [act] r = Relu(n)
        [second] c = Conv(r, v) [bound] l = LeakyRelu(c)
        p = GlobalAveragePool(l) f = Flatten(p) [product] m = MatMul(f, u) [bias] y = Add(m, b) }"""
    shapes = {"w": (16, 3, 3, 3), "v": (16, 16, 1, 1), "u": (16, 5), "b": (5,), "one": (16,), "zero": (16,)}
    found = counted(text, **shapes)
    assert sorted(found.floating_nodes) == ["first", "product", "second"]
