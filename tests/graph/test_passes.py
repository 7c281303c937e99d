"""The passes without much arithmetic: normalize, constants, simplify, fold_reshape, hard_sigmoid, tidy."""

import logging
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import onnx
import onnxsim
import pytest
from onnx import TensorProto, helper

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import (
    constants,
    fold_reshape,
    hard_sigmoid,
    normalize,
    own_weights,
    simplify,
    tidy,
    vector_weights,
)

from .models import assert_same, build, node, operators, random, run


class TestNormalize:
    def test_domains_unknown_axes_and_stale_shapes(self) -> None:
        model = build(
            [node("Relu", "x", "y")], inputs={"x": [-1, 3, "?", "?", "H"]}, outputs={"y": [-1, 3, "?", "?", "H"]}
        )
        model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
        model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
        result = normalize.run(model)
        index = GraphIndex(result)
        assert index.shape("x") == index.shape("y") == (None, 3, None, None, "H")
        assert result.opset_import[0].domain == result.graph.node[0].domain == ""
        assert not result.graph.value_info

    def test_local_functions_are_inlined(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]>
            g (float[N, 4] x) => (float[N, 4] y) { t = local.swish(x) y = local.swish(t) }
            <domain: "local", opset_import: ["": 17]> swish (x) => (y) { s = Sigmoid(x) y = Mul(x, s) }"""
        )
        result = normalize.run(onnx.ModelProto.FromString(model.SerializeToString()))
        assert operators(result) == {"Sigmoid": 2, "Mul": 2}
        assert_same(model, result, x=random(3, 4))


class TestConstants:
    @pytest.mark.parametrize(
        ("attributes", "expected"),
        [
            ({"value": onnx.numpy_helper.from_array(random(2, 3))}, random(2, 3)),
            ({"value_float": 1.5}, np.float32(1.5)),
            ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
            ({"value_int": 7}, np.int64(7)),
            ({"value_ints": [1, 2]}, np.array([1, 2])),
        ],
    )
    def test_constant_nodes_become_initializers(self, attributes, expected) -> None:
        model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
        model.graph.node.append(helper.make_node("Constant", [], ["k"], **attributes))
        value = GraphIndex(constants.run(model)).constant("k")
        assert value is not None
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)

    def test_strings_and_sparse_values_are_refused(self) -> None:
        model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
        model.graph.node.append(helper.make_node("Constant", [], ["k"], name="text", value_string="a"))
        with pytest.raises(ModelError, match=r"node 'text' \(Constant\): holds no dense number \(value_string\)"):
            constants.run(model)

    def test_initializers_are_no_inputs(self) -> None:
        model = build([node("Mul", "x w", "y")], inputs={"x": [3], "w": [3]}, outputs={"y": [3]}, opset=9)
        model.ir_version = 3
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(3), "w"))
        before = onnx.ModelProto.FromString(model.SerializeToString())
        result = constants.run(model)
        assert [value.name for value in result.graph.input] == ["x"]
        assert result.ir_version == 4
        assert_same(before, result, x=random(3))


class TestSimplify:
    def model(self) -> onnx.ModelProto:
        model = build(
            [node("Add", "a b", "s"), node("Mul", "x s", "y", "product")],
            inputs={"x": ["batch", 3]},
            outputs={"y": ["batch", 3]},
            constants={"a": random(3), "b": random(3)},
        )
        model.metadata_props.add(key="author", value="somebody")
        return model

    def test_constants_fold_and_the_interface_stays(self, capfd: pytest.CaptureFixture[str]) -> None:
        model = self.model()
        result = simplify.run(model)
        assert operators(result) == {"Mul": 1}
        assert (result.graph.input, result.graph.output) == (model.graph.input, model.graph.output)
        assert result.metadata_props == model.metadata_props
        assert_same(model, result, x=random(2, 3))
        assert capfd.readouterr() == ("", "")

    def test_an_input_too_large_to_run_is_not_run(self) -> None:
        model = build(
            [node("Add", "a b", "s"), node("Mul", "x s", "y")],
            inputs={"x": [2**40, 3]},
            outputs={"y": [2**40, 3]},
            constants={"a": random(3), "b": random(3)},
        )
        assert operators(simplify.run(model)) == {"Mul": 1}

    def test_batch_normalization_stays(self) -> None:
        model = build(
            [node("Conv", "x w", "c"), node("BatchNormalization", "c s s s s", "y")],
            inputs={"x": [1, 3, 4, 4]},
            outputs={"y": [1, 3, 4, 4]},
            constants={"w": random(3, 3, 1, 1), "s": np.ones(3, np.float32)},
        )
        assert operators(simplify.run(model)) == {"Conv": 1, "BatchNormalization": 1}

    def test_what_onnxsim_prints_is_logged_for_us_alone(self, monkeypatch, capsys, caplog) -> None:
        def simplify_beside_another_caller(*args: Any, **options: Any) -> Any:
            other = threading.Thread(target=original, args=(self.model(),), kwargs={"check_n": 1})
            other.start()
            other.join()
            seen.append(capsys.readouterr().out)
            return original(*args, **options)

        original, seen = onnxsim.simplify, []
        monkeypatch.setattr(onnxsim, "simplify", simplify_beside_another_caller)
        with caplog.at_level(logging.DEBUG):
            simplify.run(self.model())
        assert "Checking" in seen[0]
        assert capsys.readouterr().out == ""
        assert any(message.startswith("onnxsim: Checking") for message in caplog.messages)
        original(self.model(), check_n=1)
        assert "Checking" in capsys.readouterr().out

    def test_onnxsim_may_rename_a_module(self) -> None:
        code = (
            "import sys, onnxsim; sys.modules['onnxsim.model_checking'] = None; "
            "from pdq_export.graph.passes import simplify; print(simplify.run.__name__)"
        )
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "run\n"
        )

    def test_a_failure_is_logged_and_the_model_kept(self, monkeypatch, caplog) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("\nsomething broke\nin C++")

        monkeypatch.setattr(onnxsim, "simplify", fail)
        model = self.model()
        with caplog.at_level(logging.WARNING):
            assert simplify.run(model) is model
        assert caplog.messages == ["onnxsim failed (something broke); going on with the model as it is"]

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda m: m.graph.input[0].__setattr__("name", "z"), "the names of the inputs"),
            (lambda m: m.graph.output.pop(), "the names of the outputs"),
            (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "the type or rank of 'x'"),
            (lambda m: m.opset_import[0].__setattr__("version", 18), "the opsets"),
            (lambda m: None, "the outputs' values"),
        ],
    )
    def test_a_changed_interface_or_result_is_logged_and_the_model_kept(
        self, monkeypatch, caplog, change, what
    ) -> None:
        changed = self.model()
        change(changed)
        monkeypatch.setattr(onnxsim, "simplify", lambda *_, **__: (changed, False))
        model = self.model()
        with caplog.at_level(logging.WARNING):
            assert simplify.run(model) is model
        assert caplog.messages == [f"onnxsim changed {what}; going on with the model as it is"]


FLATTEN = {
    "view(size(0), -1)": "s = Shape(r) d = Gather<axis=0>(s, zero) u = Unsqueeze(d, first) v = Concat<axis=0>(u, rest)",
    "slice of shape": "s = Shape(r) u = Slice(s, first, one) v = Concat<axis=0>(u, rest)",
    "shape with bounds": "u = Shape<start=0, end=1>(r) v = Concat<axis=0>(u, rest)",
    "shape of the input": "s = Shape(x) u = Gather<axis=0>(s, first) v = Concat<axis=0>(u, rest)",
    "cast": "s = Shape(r) c = Cast<to=6>(s) d = Cast<to=7>(c) u = Slice(d, first, one) v = Concat<axis=0>(u, rest)",
}


class TestFoldReshape:
    @staticmethod
    def model(shape: str, batch: str = "N", rest: str = "-1", allowzero: int = 0) -> onnx.ModelProto:
        return onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[{batch}, 3, 2, 2] x) => (float[M, K] y)
            <int64 zero = {{0}}, int64[1] first = {{0}}, int64[1] one = {{1}}, int64[1] rest = {{{rest}}}>
            {{ r = Relu(x) {shape} y = Reshape <allowzero = {allowzero}> (r, v) }}"""
        )

    @pytest.mark.parametrize("form", FLATTEN)
    def test_allowzero_as_torch_sets_it(self, form: str) -> None:
        model = self.model(FLATTEN[form], rest="12", allowzero=1)
        before = onnx.ModelProto.FromString(model.SerializeToString())
        result = fold_reshape.run(model)
        assert operators(result) == {"Relu": 1, "Reshape": 1}
        assert_same(before, result, x=random(5, 3, 2, 2))

    @pytest.mark.parametrize(("places", "becomes"), [([[0], [1], [2]], "Reshape"), ([[0], [2], [1]], "Gather")])
    def test_all_of_a_vector_in_order_is_a_reshape(self, places: list[list[int]], becomes: str) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[3] x) => (float[3, 1] y) { y = Gather <axis = 0> (x, places) }"""
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(places), "places"))
        before = onnx.ModelProto.FromString(model.SerializeToString())
        result = fold_reshape.run(tidy.infer_shapes(model))
        assert operators(result) == {becomes: 1}
        assert_same(before, result, x=random(3))

    def test_what_is_inferred_is_kept_where_it_is_the_same(self) -> None:
        """The end of GroupNormalization as the older exporter writes it."""
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[N, 4, 2, 2] x) => (float[N, 4, 2, 2] y, float[M, 4] z)
            <int64[3] s = {0, 2, -1}, int64[4] t = {-1, 4, 2, 2}, int64[2] u = {-1, 4}>
            { a = Reshape(x, s) b = Sigmoid(a) y = Reshape(b, t) z = Reshape(b, u) }"""
        )
        before = onnx.ModelProto.FromString(model.SerializeToString())
        index = GraphIndex(fold_reshape.run(model))
        shapes = {name: index.constant(index.producer[name].input[1]).tolist() for name in ("a", "y", "z")}
        assert shapes == {"a": [0, 2, -1], "y": [0, 4, 2, 2], "z": [-1, 4]}
        assert_same(before, model, x=random(3, 4, 2, 2))

    @pytest.mark.parametrize("batch", ["N", "?"])
    @pytest.mark.parametrize("rest", ["-1", "12"])
    @pytest.mark.parametrize("form", FLATTEN)
    def test_flatten_in_every_form(self, form: str, rest: str, batch: str) -> None:
        model = self.model(FLATTEN[form], batch.replace("?", ""), rest) if batch == "N" else self.model(FLATTEN[form])
        if batch == "?":
            model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
        before = onnx.ModelProto.FromString(model.SerializeToString())
        result = fold_reshape.run(model)
        assert operators(result) == {"Relu": 1, "Reshape": 1}
        assert GraphIndex(result).constant(result.graph.node[1].input[1])[0] == 0
        assert (result.graph.input, result.graph.output) == (before.graph.input, before.graph.output)
        assert_same(before, result, x=random(5, 3, 2, 2))

    def test_an_axis_of_another_tensor_is_inferred(self) -> None:
        model = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[N, 4] x, float[M, 2] z) => (float[M, K] y) <int64[1] zero = {0}, int64[1] two = {2}>
            { s = Shape(z) u = Gather<axis=0>(s, zero) v = Concat<axis=0>(u, two) y = Reshape(x, v) }"""
        )
        before = onnx.ModelProto.FromString(model.SerializeToString())
        result = fold_reshape.run(model)
        assert GraphIndex(result).constant(result.graph.node[0].input[1]).tolist() == [-1, 2]
        assert_same(before, result, x=random(3, 4), z=random(6, 2))

    @pytest.mark.parametrize(
        "shape",
        [
            "u = Cast<to=7>(z) v = Concat<axis=0>(u, rest)",  # a value, not a size
            "s = Shape(z) v = Concat<axis=0>(s, rest)",  # an axis that Reshape's input does not have, and -1
        ],
    )
    def test_what_is_not_determined_stays(self, shape: str) -> None:
        model = onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[N, 4] x, float[K] z) => (float[M, L] y) <int64[1] rest = {{-1}}>
            {{ {shape} y = Reshape(x, v) }}"""
        )
        count = len(model.graph.node)
        assert len(fold_reshape.run(model).graph.node) == count


HARD = {
    "gate, then product": "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)",
    "product, then division": "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Div(m, six)",
    "product, then factor": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Mul(m, sixth)",
    "factor, then product": "a = Add(x, three) c = Clip(a, zero, six) d = Mul(sixth, c) y = Mul(d, x)",
    "half fused": "d = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, d)",
    "one node": "y = HardSwish(x)",
}
CONSTANTS = """<float zero = {0}, float three = {3}, float six = {6}, float sixth = {0.16666667}, float five = {5},
    float[1,1,1,1] tall = {3}, float[1,1,1,1] tall_six = {6}, int32 i0 = {0}, int32 i3 = {3}, int32 i6 = {6}>"""


class TestHardSwish:
    @staticmethod
    def model(body: str, opset: int = 17, outputs: str = "float[N, 4] y") -> onnx.ModelProto:
        text = f'<ir_version: 7, opset_import: ["": {opset}]> g (float[N, 4] x) => ({outputs}) {CONSTANTS} {{ {body} }}'
        return onnx.parser.parse_model(text)

    @pytest.mark.parametrize("form", HARD)
    def test_every_form(self, form: str) -> None:
        model = self.model(HARD[form])
        before = onnx.ModelProto.FromString(model.SerializeToString())
        result = hard_sigmoid.run(model)
        assert operators(result) == {"HardSigmoid": 1, "Mul": 1}
        assert_same(before, result, x=random(8, 4) * 4)

    def test_hard_sigmoid_alone(self) -> None:
        model = self.model("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)")
        before = onnx.ModelProto.FromString(model.SerializeToString())
        result = hard_sigmoid.run(model)
        assert operators(result) == {"HardSigmoid": 1}
        assert_same(before, result, x=random(8, 4) * 4)

    def test_clip_with_attributes(self) -> None:
        model = self.model("a = Add(x, three) c = Clip<min=0.0, max=6.0>(a) y = Div(c, six)", opset=10)
        model.ir_version = 5
        assert operators(hard_sigmoid.run(model)) == {"HardSigmoid": 1}

    @pytest.mark.parametrize(
        "body",
        [
            "a = Add(x, five) c = Clip(a, zero, six) y = Div(c, six)",
            "a = Add(x, three) c = Clip(a, zero, five) y = Div(c, six)",
            "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, five)",
            "a = Add(x, three) c = Clip(a, zero, six) y = Div(six, c)",
            "a = Add(x, three) c = Clip(a, zero) y = Div(c, six)",
            "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Add(d, c)",
            "a = Add(x, three) c = Clip(a, zero, six) m = Mul(c, c) y = Div(m, six)",
            "r = Relu(x) d = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(r, d)",
            "d = HardSigmoid(x) y = Mul(x, d)",
            "a = Add(x, tall) c = Clip(a, zero, six) y = Div(c, six)",  # [1, 1, 1, 1]: the result has its rank
            "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, tall_six)",
            "i = Cast <to = 6> (x) a = Add(i, i3) c = Clip(a, i0, i6) d = Div(c, i6) y = Cast <to = 1> (d)",
        ],
    )
    def test_look_alikes_stay(self, body: str) -> None:
        model = self.model(body)
        before = operators(model)
        assert operators(hard_sigmoid.run(model)) == before

    def test_tensors_that_are_outputs_stay(self) -> None:
        model = self.model(HARD["gate, then product"], outputs="float[N, 4] y, float[N, 4] c")
        before = operators(model)
        assert operators(hard_sigmoid.run(model)) == before


class TestTidy:
    def test_names_are_unique_and_given_ones_stay(self) -> None:
        names = ["", "a", "a", "Relu_0", "", "a_1", "a"]
        model = onnx.ModelProto()
        for i, name in enumerate(names):
            model.graph.node.append(node("Relu", f"t{i}", f"t{i + 1}", name))
        result = [n.name for n in tidy.name_nodes(model).graph.node]
        assert result == ["Relu_0_1", "a", "a_2", "Relu_0", "Relu_4", "a_1", "a_3"]

    def test_what_nobody_reads_goes(self) -> None:
        model = build(
            [
                node("Relu", "x", "r"),
                node("Mul", "r used", "y"),
                node("Mul", "r unused", "dead"),
                node("Relu", "dead", "deader"),
            ],
            inputs={"x": [3]},
            outputs={"y": [3]},
            constants={"used": random(3), "unused": random(3)},
        )
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        result = tidy.remove_unused(model)
        assert operators(result) == {"Relu": 1, "Mul": 1}
        assert [tensor.name for tensor in result.graph.initializer] == ["used"]
        assert [entry.domain for entry in result.opset_import] == [""]

    def test_shapes_are_inferred_with_large_and_small_constants(self) -> None:
        model = build(
            [node("Conv", "x w", "c"), node("Reshape", "c s", "r"), node("Relu", "r", "y")],
            inputs={"x": [2, 64, 4, 4]},
            outputs={"y": [None, None]},
            constants={"w": random(32, 64, 1, 1), "s": np.array([2, -1])},
        )
        index = GraphIndex(tidy.infer_shapes(model))
        assert index.static_shape("c") == (2, 32, 4, 4)
        assert index.static_shape("r") == (2, 512)
        assert index.shape("y") == (None, None)  # outputs stay as they were declared

    def test_unknown_operators_and_wrong_output_shapes_are_no_contradiction(self) -> None:
        model = build([node("Relu", "x", "t"), node("Relu", "t", "y")], inputs={"x": [2, 5]}, outputs={"y": [7]})
        model.graph.node[1].input[0] = "magic"
        model.graph.node.insert(1, helper.make_node("Magic", ["t"], ["magic"], domain="com.example"))
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        index = GraphIndex(tidy.infer_shapes(model))
        assert index.static_shape("t") == (2, 5)
        assert index.shape("magic") is None

    def test_contradictions_are_refused(self) -> None:
        model = build(
            [node("MatMul", "x w", "c"), node("Relu", "c", "y")],
            inputs={"x": [2, 5]},
            outputs={"y": [2, 3]},
            constants={"w": random(4, 3)},
        )
        with pytest.raises(ModelError, match="shapes cannot be inferred"):
            tidy.infer_shapes(model)


def test_functions_that_do_not_fit_their_calls_are_refused() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[2] x) => (float[2] y) { y = local.f(x, x, x) }
        <domain: "local", opset_import: ["": 17]> f (a) => (b) { b = Relu(a) }"""
    )
    with pytest.raises(ModelError, match="its functions cannot be inlined"):
        normalize.run(model)


def test_nodes_of_one_name_are_told_apart_and_unnamed_ones_stay() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x) => (float[2] y) {
            [n] a = Relu(x) [n] b = Relu(a) [n_1] c = Relu(b) d = Relu(c) [n] y = Relu(d)
        }"""
    )
    assert [item.name for item in normalize.run(model).graph.node] == ["n", "n_2", "n_1", "", "n_3"]


def test_a_weight_along_two_axes_becomes_two_and_along_one_stays() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x) => (float[2,3] y) <float[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
            a = Gemm(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) e = Gemm<transB = 1>(d, w) f = Relu(e)
            y = Gemm<transB = 1>(f, w) }"""
    )
    before = onnx.ModelProto()
    before.CopyFrom(model)
    after = own_weights.run(model)
    a, c, e, y = (node.input[1] for node in after.graph.node if node.op_type in ("Gemm", "MatMul"))
    assert a == c == "w"
    assert e == y != "w"
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(after, x=x), run(before, x=x))


@pytest.mark.parametrize("opset", [11, 17])
def test_a_vector_is_a_matrix_of_one_column(opset: int) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[N,2,3] x) => (float[N,2] y) <float[3] v = {{1, 2, 3}}> {{ a = MatMul(x, v) y = Relu(a) }}"""
    )
    before = onnx.ModelProto()
    before.CopyFrom(model)
    after = vector_weights.run(tidy.infer_shapes(model))
    assert operators(after) == {"MatMul": 1, "Squeeze": 1, "Relu": 1}
    assert GraphIndex(after).shape("a") == ("N", 2)
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(run(after, x=x)[0], run(before, x=x)[0], rtol=1e-6)
