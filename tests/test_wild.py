"""Files as they are found in the wild, each through import, quantization and export."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pdq_export.calibrate import collapse
from pdq_export.commands.convert import convert
from pdq_export.commands.inspect import inspect_model
from pdq_export.commands.quantize import Result, quantize
from pdq_export.data import ImageSet
from pdq_export.errors import DataError, ModelError, UnsupportedOperatorError, ValidationError
from pdq_export.graph.lookup import reads
from pdq_export.validate import Session

from .graph.models import build, node, norm_constants, random

TINY = {"samples": 8, "iters": 4, "correction_iters": 1, "batch_size": 4}
PAD = {"pads": [1, 1, 1, 1]}
INPUT, SCORES = {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}
CONSTANTS = {"w1": random(4, 3, 3, 3), "w2": random(4, 4, 3, 3, seed=1), "w3": random(5, 4), "b3": random(5)}


def stem() -> list[onnx.NodeProto]:
    return [node("Conv", "x w1", "c1", **PAD), node("Relu", "c1", "r1")]


def head(tensor: str = "r1") -> list[onnx.NodeProto]:
    return [
        node("GlobalAveragePool", tensor, "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w3 b3", "y", transB=1),
    ]


def small(opset: int = 17) -> onnx.ModelProto:
    """Two convolutions and a classifier."""
    nodes = [*stem(), node("Conv", "r1 w2", "c2", **PAD), node("Relu", "c2", "r2"), *head("r2")]
    return build(nodes, inputs=INPUT, outputs=SCORES, constants=CONSTANTS, opset=opset)


def images(*shape: int) -> np.ndarray:
    return random(*(shape or (8, 3, 8, 8)))


def survives(
    model: onnx.ModelProto | Path, calib: np.ndarray | dict[str, np.ndarray] | None = None, **changes: Any
) -> Result:
    """Quantized, and the file agrees with its simulation, with names, types and axes of inputs and outputs kept."""
    arguments = {"bits": "4/4", "options": TINY, "device": "cpu", **changes}
    result = quantize(model, calib=images() if calib is None else calib, **arguments)
    for output in result.report.outputs:
        assert output.quantized_simulated is not None
        assert output.quantized_simulated.relative_error < 1e-3, output
    if isinstance(model, onnx.ModelProto):
        constant = {tensor.name for tensor in model.graph.initializer}
        assert list(result.model.graph.input) == [v for v in model.graph.input if v.name not in constant]
        assert result.model.graph.output == model.graph.output
    return result


def run(result: Result, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: x for value, x in zip(session.get_inputs(), inputs, strict=True)})


def layers(result: Result) -> list[str]:
    return [layer.op_type for layer in result.plan.layers]


def test_dynamic_batch_and_spatial_axes_are_kept() -> None:
    nodes = [*stem(), node("Conv", "r1 w2", "c2", **PAD), node("Relu", "c2", "y")]
    shapes = {"inputs": {"x": ["N", 3, "height", None]}, "outputs": {"y": ["N", 4, "height", None]}}
    result = survives(build(nodes, constants={k: CONSTANTS[k] for k in ("w1", "w2")}, **shapes))
    for shape in ((1, 3, 8, 8), (5, 3, 6, 10), (2, 3, 32, 16)):
        (y,) = run(result, images(*shape))
        assert y.shape == (shape[0], 4, *shape[2:])


@pytest.mark.parametrize("opset", [*range(9, onnx.defs.onnx_opset_version() + 1)])
def test_opsets(opset: int) -> None:
    try:
        onnxruntime.InferenceSession(small(opset).SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # the installed onnx may be ahead of the installed onnxruntime
        assert opset > 21
        with pytest.raises(ValidationError, match="does not load the model"):
            survives(small(opset))
    else:
        assert layers(survives(small(opset))) == ["Conv", "Conv", "Gemm"]


def test_constant_nodes_hold_all_weights() -> None:
    model = small()
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    assert layers(survives(model)) == ["Conv", "Conv", "Gemm"]


def test_initializers_are_listed_as_inputs() -> None:
    model = small()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = survives(model)
    assert [value.name for value in result.model.graph.input] == ["x"]


def test_one_initializer_is_weight_and_operand_and_another_serves_two_biases() -> None:
    nodes = [
        node("Conv", "x w1 b", "c1", **PAD),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b", "c2", **PAD),
        node("Relu", "c2", "r2"),
        node("ReduceMean", "w2", "m", axes=[1, 2, 3], keepdims=0),
        node("Reshape", "m s", "shift"),
        node("Add", "r2 shift", "a"),
        *head("a"),
    ]
    constants = {**CONSTANTS, "b": random(4), "s": np.array([1, 4, 1, 1])}
    survives(build(nodes, inputs=INPUT, outputs=SCORES, constants=constants))


def test_one_weight_in_two_layers_is_one_point() -> None:
    nodes = [*stem(), node("Conv", "r1 w2", "c2", **PAD), node("Relu", "c2", "r2")]
    nodes += [node("Conv", "r2 w2", "c3", **PAD), node("Relu", "c3", "r3"), *head("r3")]
    result = survives(build(nodes, inputs=INPUT, outputs=SCORES, constants=CONSTANTS))
    assert [layer.weight for layer in result.plan.layers] == ["w1", "w2", "w2", "w3"]


def test_one_weight_with_two_normalizations_is_two_weights() -> None:
    nodes = [*stem(), node("Conv", "r1 w2", "c2", **PAD), node("BatchNormalization", "c2 n.g n.b n.m n.v", "n2")]
    nodes += [node("Relu", "n2", "r2"), node("Conv", "r2 w2", "c3", **PAD)]
    nodes += [node("BatchNormalization", "c3 m.g m.b m.m m.v", "n3"), node("Relu", "n3", "r3"), *head("r3")]
    constants = {**CONSTANTS, **norm_constants(4), **norm_constants(4, "m", seed=5)}
    result = survives(build(nodes, inputs=INPUT, outputs=SCORES, constants=constants))
    assert len({layer.weight for layer in result.plan.layers}) == 4


def test_unnamed_and_equally_named_nodes() -> None:
    model = small()
    for item in model.graph.node[:3]:
        item.name = ""
    for item in model.graph.node[3:]:
        item.name = "node"
    result = survives(model)
    constants = {tensor.name for tensor in result.model.graph.initializer}
    names = []
    for item in result.model.graph.node:
        if constants.issuperset(item.input):  # folded when the file is loaded
            constants.update(item.output)
        else:
            names.append(item.name)
    assert all(names)
    assert len(set(names)) == len(names)


ODD = [" ", "a b", "/a/b:0", "层.权重", 'it\'s "so"', "\\", "a\tb", "-", "0", "é" * 5, "x" * 3000, "self", "%s{}"]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_names_with_odd_characters(odd: str) -> None:
    model = small()
    for item in model.graph.node:
        item.name = odd
        item.input[:] = [f"{odd}{name}" for name in item.input]
        item.output[:] = [f"{odd}{name}" for name in item.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = f"{odd}{value.name}"
    survives(model)


def test_names_that_differ_by_characters_that_python_has_no_names_for() -> None:
    model = small()
    names = {"c1": "a.b", "r1": "a/b", "c2": "a:b", "r2": "a_b", "p": "a b", "f": "a-b"}
    for item in model.graph.node:
        item.input[:] = [names.get(name, name) for name in item.input]
        item.output[:] = [names.get(name, name) for name in item.output]
    survives(model)


def test_names_that_the_exporter_would_give_itself() -> None:
    model = small()
    names = {"c1": "w2_quantized", "r2": "r1_quantized", "p": "r1_clipped", "f": "x_scale", "c2": "uint8_0"}
    for item in model.graph.node:
        item.name = f"{item.output[0]}/QuantizeLinear"
        item.input[:] = [names.get(name, name) for name in item.input]
        item.output[:] = [names.get(name, name) for name in item.output]
    survives(model)


def test_functions_are_inlined() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N,3,8,8] x) => (float[N,5] y) {
            r1 = local.unit <group = 1> (x, w1)  r2 = local.unit <group = 1> (r1, w2)
            p = GlobalAveragePool(r2)  f = Flatten(p)  y = Gemm <transB = 1> (f, w3, b3)
        }
        <domain: "local", opset_import: ["": 17]> unit <group> (x, w) => (y) {
            c = Conv <pads = [1, 1, 1, 1], group: int = @group> (x, w)  y = Relu(c)
        }"""
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in CONSTANTS.items())
    assert layers(survives(model)) == ["Conv", "Conv", "Gemm"]


def test_outputs_and_nodes_that_nobody_reads() -> None:
    nodes = [*stem(), node("MaxPool", "r1", "m indices", kernel_shape=[2, 2]), node("Exp", "r1", "dead")]
    nodes += [node("Split", "m halves", "s1 s2", axis=1), node("Conv", "s1 half", "c2"), *head("c2")]
    constants = {**CONSTANTS, "halves": np.array([2, 2]), "half": random(4, 2, 1, 1)}
    survives(build(nodes, inputs=INPUT, outputs=SCORES, constants=constants))


def test_several_outputs_one_of_them_twice_read_and_one_of_whole_numbers() -> None:
    model = small()
    model.graph.node.append(node("ArgMax", "y", "best", axis=1, keepdims=0))
    for name, kind, shape in (("r1", 1, ["N", 4, 8, 8]), ("c2", 1, ["N", 4, 8, 8]), ("best", 7, ["N"])):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    result = survives(model)
    assert [output.name for output in result.report.outputs] == ["y", "r1", "c2", "best"]
    assert told_in_float(result, "Conv") == sum(result.report.kernels.floating.values()) == 2


def test_a_convolution_whose_output_is_a_graph_output_and_is_read_as_well() -> None:
    nodes = [node("Conv", "x w1", "c1", **PAD), node("Conv", "c1 w2", "c2", **PAD), node("Relu", "c2", "r2")]
    outputs = {**SCORES, "c1": ["N", 4, 8, 8], "c2": ["N", 4, 8, 8]}
    result = survives(build([*nodes, *head("r2")], inputs=INPUT, outputs=outputs, constants=CONSTANTS))
    assert told_in_float(result, "Conv") == sum(result.report.kernels.floating.values()) == 2


def told_in_float(result: Result, op_type: str) -> int:
    return sum(node["op_type"] == op_type for node in result.report.floating)


def test_external_data(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size > 0
    assert layers(survives(tmp_path / "m.onnx")) == ["Conv", "Conv", "Gemm"]


def as_type(model: onnx.ModelProto, kind: int, *, interface: bool = True) -> onnx.ModelProto:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if interface:
            value.type.tensor_type.elem_type = kind
    return model


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_float_types(kind: int) -> None:
    result = survives(as_type(small(), kind))
    (y,) = run(result, images().astype(helper.tensor_dtype_to_np_dtype(kind)))
    assert y.dtype == helper.tensor_dtype_to_np_dtype(kind)
    assert result.report.kernels.all_integer


def test_weights_stored_in_float16() -> None:
    model = as_type(small(), TensorProto.FLOAT16, interface=False)
    casts = [node("Cast", name, f"{name}.wide", to=1) for name in CONSTANTS]
    for item in model.graph.node:
        item.input[:] = [f"{name}.wide" if name in CONSTANTS else name for name in item.input]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert layers(survives(model)) == ["Conv", "Conv", "Gemm"]


def test_shape_and_gather_arithmetic() -> None:
    """``x.view(x.size(0), -1)`` and ``x[:, :, : h // 2]`` as an exporter without constant folding writes them."""
    nodes = [*stem(), node("Shape", "r1", "s"), node("Gather", "s two", "h", axis=0), node("Div", "h two", "half")]
    nodes += [node("Unsqueeze", "half zero", "end"), node("Slice", "r1 zero end axis", "top")]
    nodes += [node("GlobalAveragePool", "top", "p"), node("Shape", "p", "ps"), node("Gather", "ps first", "n", axis=0)]
    nodes += [node("Unsqueeze", "n zero", "n1"), node("Concat", "n1 rest", "to", axis=0), node("Reshape", "p to", "f")]
    nodes += [node("Gemm", "f w3 b3", "y", transB=1)]
    numbers = {"two": 2, "zero": [0], "axis": [2], "first": 0, "rest": [-1]}
    constants = {**CONSTANTS, **{name: np.array(value) for name, value in numbers.items()}}
    model = build(nodes, inputs={"x": ["N", 3, "H", "W"]}, outputs=SCORES, constants=constants)
    result = survives(model)
    assert run(result, images(3, 3, 6, 10))[0].shape == (3, 5)


def test_normalization_that_follows_no_convolution() -> None:
    nodes = [node("BatchNormalization", "x n.g n.b n.m n.v", "n0"), node("Conv", "n0 w1", "c1", **PAD)]
    nodes += [node("Relu", "c1", "r1"), node("BatchNormalization", "r1 m.g m.b m.m m.v", "n1"), *head("n1")]
    constants = {**CONSTANTS, **norm_constants(3), **norm_constants(4, "m")}
    survives(build(nodes, inputs=INPUT, outputs=SCORES, constants=constants))


def test_a_weight_that_is_computed_from_constants() -> None:
    """Weight normalization: g v / |v|."""
    nodes = [*stem(), node("ReduceL2", "v", "size", axes=[1, 2, 3]), node("Div", "v size", "direction")]
    nodes += [node("Mul", "direction g", "w2"), node("Conv", "r1 w2", "c2", **PAD), *head("c2")]
    constants = {**{k: CONSTANTS[k] for k in ("w1", "w3", "b3")}, "v": CONSTANTS["w2"], "g": random(4, 1, 1, 1)}
    assert layers(survives(build(nodes, inputs=INPUT, outputs=SCORES, constants=constants))) == ["Conv", "Conv", "Gemm"]


def test_a_weight_that_depends_on_the_image_stays_float() -> None:
    nodes = [*stem(), node("ReduceMean", "r1", "m", axes=[0, 1, 2, 3]), node("Sigmoid", "m", "s")]
    nodes += [node("Mul", "w2 s", "w"), node("Conv", "r1 w", "c2", **PAD), *head("c2")]
    result = survives(build(nodes, inputs={"x": [1, 3, 8, 8]}, outputs={"y": [1, 5]}, constants=CONSTANTS))
    assert layers(result) == ["Conv", "Gemm"]
    assert sum(result.report.kernels.floating.values()) == 1


SCORER = """r1 = Relu(c1)  q = GlobalAveragePool(r1)  f = Flatten(q)  l = Gemm <transB = 1> (f, w3, b3)
    s = ReduceMax <keepdims = 0> (l)  p = Greater(s, zero)"""
BOXES = """r1 = Relu(c1)  b0 = Conv(r1, box)  b1 = Reshape(b0, four)  boxes = Transpose <perm = [0, 2, 1]> (b1)
    s0 = Conv(r1, score)  s1 = Sigmoid(s0)  scores = Reshape(s1, three)"""
# What follows c1, the outputs, what stays in float, and what is compared in place of the outputs.
TAILS = {
    "branches": (
        f"""{SCORER} y = If (p) < then_branch = a () => (float[N, 5] t) {{ t = Mul(l, factor) }},
            else_branch = b () => (float[N, 5] e) {{ e0 = Mul(l, factor) e = Neg(e0) }} >""",
        "float[N,5] y",
        ["ReduceMax", "Greater", "If"],
        ["l"],
    ),
    "a branch in a branch": (
        f"""{SCORER} y = If (p) < then_branch = a () => (float[N, 5] t) {{
                t = If (p) < then_branch = c () => (float[N, 5] t1) {{ t1 = Mul(l, factor) }},
                             else_branch = d () => (float[N, 5] t2) {{ t2 = Identity(l) }} > }},
            else_branch = b () => (float[N, 5] e) {{ e = Neg(l) }} >""",
        "float[N,5] y",
        ["ReduceMax", "Greater", "If"],
        ["l"],
    ),
    "a loop": (
        f"""{SCORER} n = Constant <value_int = 3> ()
            z = Loop (n, p, l) < body = a (int64 i, bool c, float[N, 5] l0) => (bool d, float[N, 5] l1) {{
                d = Identity(c) l1 = Mul(l0, factor) }} >
            y = Relu(z)""",
        "float[N,5] y, float[N,5] l",
        ["ReduceMax", "Greater", "Loop", "Relu"],
        ["l"],
    ),
    "a layer in a branch": (
        f"""{SCORER} y = If (p) < then_branch = a () => (float[N, 4, 8, 8] t) {{
                t = Conv <pads = [1, 1, 1, 1]> (r1, w2) }},
            else_branch = b () => (float[N, 4, 8, 8] e) {{ e = Neg(r1) }} >""",
        "float[N,4,8,8] y, float[N,5] l",
        ["ReduceMax", "Greater", "If"],
        ["l", "r1"],
    ),
    "a scan": (
        f"""{SCORER} first = ReduceMin <axes = [1], keepdims = 0> (l)  classes = Transpose <perm = [1, 0]> (l)
            last, y = Scan <num_scan_inputs = 1, body = b (float[N] a, float[N] e) => (float[N] c, float[N] o) {{
                c = Add(a, e) o = Identity(c) }}> (first, classes)""",
        "float[5,N] y",
        ["Transpose", "Scan"],
        ["l", "first"],
    ),
    "suppression of boxes": (
        f"""{BOXES} kept = NonMaxSuppression(boxes, scores, most, least, least)
            which = Gather <axis = 1> (kept, columns)  y = GatherND(boxes, which)""",
        "float[K,4] y, int64[K,3] kept",
        ["NonMaxSuppression", "Gather", "GatherND"],
        ["boxes", "scores"],
    ),
    "boxes of the first image": (
        """r1 = Relu(c1)  b0 = Conv(r1, box)  first = Constant <value_int = 0> ()  g = Gather <axis = 0> (b0, first)
            a = Sigmoid(g)  u = Reshape(a, rows)  y, i, v, count = Unique <axis = 0> (u)""",
        "float[K,4] y, int64[K] count",
        ["Gather", "Sigmoid", "Reshape", "Unique"],
        ["b0"],
    ),
    "an operator of onnxruntime": (
        f"{SCORER} y = com.microsoft.BiasGelu(l, factor)",
        "float[N,5] y",
        ["BiasGelu"],
        ["l"],
    ),
    "a sequence": (
        f"{SCORER} y = SplitToSequence <axis = 1, keepdims = 0> (l)",
        "seq(float[N]) y",
        ["SplitToSequence"],
        ["l"],
    ),
}
NUMBERS = {
    "zero": np.array(0, np.float32),
    "factor": random(5, seed=3),
    "box": random(4, 4, 1, 1, seed=1),
    "score": random(3, 4, 1, 1, seed=2),
    "four": np.array([0, 4, -1]),
    "three": np.array([0, 3, -1]),
    "rows": np.array([-1, 4]),
    "most": np.array([5]),
    "least": np.array([0.3], np.float32),
    "columns": np.array([0, 2]),
}


def with_tail(body: str, outputs: str, opset: int = 17) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>
        g (float[N,3,8,8] x) => ({outputs}) {{ c1 = Conv <pads = [1, 1, 1, 1]> (x, w1) {body} }}"""
    )
    used = {name for node in model.graph.node for name in reads(node)}
    constants = {name: value for name, value in {**CONSTANTS, **NUMBERS}.items() if name in used}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


@pytest.mark.parametrize("name", TAILS)
def test_what_lies_behind_the_quantized_part_stays_in_float(name: str, caplog: pytest.LogCaptureFixture) -> None:
    body, outputs, left, compared = TAILS[name]
    model = with_tail(body, outputs)
    with caplog.at_level(logging.WARNING, logger="pdq_export"):
        result = survives(model)
    assert "stay in float as they are" in caplog.text
    reasons = {node["node"]: node["reason"] for node in result.report.floating}
    assert [node.op_type for node in result.model.graph.node if node.name in result.plan.tail] == left
    assert {name: reasons[name] for name in result.plan.tail} == result.plan.tail
    assert {node.node: node.reason for node in inspect_model(model).floating} == reasons
    assert [output.name for output in result.report.outputs] == compared
    assert layers(result) == [n.op_type for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    for target in ("native", "qcdq"):
        assert convert(convert(result.model, target), "ort") == result.model


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize(("target", "bits"), [("native", "2/4"), ("qcdq", "4/3"), ("tensorrt", "8/8")])
def test_what_lies_behind_the_quantized_part_in_another_layout(name: str, target: str, bits: str) -> None:
    body, outputs, left, _ = TAILS[name]
    result = survives(with_tail(body, outputs), target=target, bits=bits)
    assert [node.op_type for node in result.model.graph.node if node.name in result.plan.tail] == left


@pytest.mark.parametrize("name", ["branches", "a branch in a branch", "a loop", "a layer in a branch", "a scan"])
@pytest.mark.parametrize("opset", [9, 11, 13, 20])
def test_subgraphs_of_every_opset(name: str, opset: int) -> None:
    """The file's opset is raised, and what a branch captures is there still: at 8 bits the branches hardly differ."""
    body, outputs, *_ = TAILS[name]
    if opset < 12:  # when Constant had tensors alone, and reductions of opset 17 had attributes already
        body = body.replace("<value_int = 3>", "<value = int64 {3}>")
    elif opset >= 18:
        body = body.replace("ReduceMin <axes = [1], keepdims = 0> (l)", "ReduceMin <keepdims = 0> (l, one)")
    model = with_tail(body, outputs, opset)
    if opset >= 18 and "one)" in body:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    result = survives(model, bits="7/8")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for expected, found in zip(session.run(None, {"x": images()}), run(result, images()), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_half_floats_in_branches() -> None:
    body, outputs, *_ = TAILS["branches"]
    model = as_type(with_tail(body.replace("float[", "float16["), outputs), TensorProto.FLOAT16)
    (y,) = run(survives(model), images().astype(np.float16))
    assert y.dtype == np.float16


@pytest.mark.parametrize("name", ["If", "Loop", "NonMaxSuppression"])
def test_what_a_quantized_layer_depends_on_is_refused(name: str) -> None:
    ends = {
        "If": """z = If (p) < then_branch = a () => (float[N, 4, 8, 8] t) { t = Relu(c1) },
                 else_branch = b () => (float[N, 4, 8, 8] e) { e = Neg(c1) } >""",
        "Loop": """n = Constant <value_int = 2> ()
            z = Loop (n, p, r1) < body = a (int64 i, bool c, float[N, 4, 8, 8] l0) => (bool d, float[N, 4, 8, 8] l1) {
                d = Identity(c) l1 = Mul(l0, l0) } >""",
        "NonMaxSuppression": """b0 = Reshape(r1, rows0)  s0 = ReduceMax <axes = [2]> (b0)
            s1 = Transpose <perm = [0, 2, 1]> (s0)  kept = NonMaxSuppression(b0, s1, most, least, least)
            k0 = Cast <to = 1> (kept)  k1 = ReduceMax <keepdims = 0> (k0)  z = Mul(r1, k1)""",
    }
    body = f"""r1 = Relu(c1)  s = ReduceMax <keepdims = 0> (r1)  p = Greater(s, zero)  {ends[name]}
        y = Conv(z, box)"""
    model = with_tail(body, "float[N,4,8,8] y")
    if name == "NonMaxSuppression":
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1, 4]), "rows0"))
    with pytest.raises(UnsupportedOperatorError, match=rf"\({name}, opset 17\): "):
        survives(model)
    (message,) = inspect_model(model).unsupported
    assert f"({name}, opset 17): " in message
    excluded = survives(model, exclude=[inspect_model(model).layers[-1].node])
    assert layers(excluded) == ["Conv"]
    assert name in {node.op_type for node in excluded.model.graph.node}


def test_one_head_mixes_images_and_another_is_unknown() -> None:
    """Of a batch of one: each of the heads alone is a tail, and so are both."""
    nodes = [
        *stem(),
        node("Conv", "r1 w2", "c2", **PAD),
        node("Squeeze", "r1 first", "q"),
        node("Relu", "q", "y"),
        node("Reshape", "c2 rows", "b0"),
        node("ReduceMax", "b0", "s0", axes=[2]),
        node("Transpose", "s0", "s1", perm=[0, 2, 1]),
        node("NonMaxSuppression", "b0 s1 most least least", "kept"),
    ]
    for each in nodes:
        each.name = each.output[0]
    constants = {"first": np.array([0]), "rows": np.array([1, -1, 4]), "most": np.array([5])}
    constants |= {"least": np.array([0.5], np.float32), "w1": CONSTANTS["w1"], "w2": CONSTANTS["w2"]}
    outputs = {"y": [4, 8, 8], "kept": ["K", 3]}
    model = build(nodes, inputs={"x": [1, 3, 8, 8]}, outputs=outputs, constants=constants)
    value = next(value for value in model.graph.output if value.name == "kept")
    value.type.tensor_type.elem_type = TensorProto.INT64
    result = survives(model)
    assert result.plan.tail.keys() == {"q", "y", "kept"}
    assert layers(result) == ["Conv", "Conv"]


def test_two_images() -> None:
    nodes = [*stem(), node("Conv", "other w1", "c2", **PAD), node("Relu", "c2", "r2"), node("Add", "r1 r2", "a")]
    inputs = {**INPUT, "other": ["N", 3, 8, 8]}
    model = build([*nodes, *head("a")], inputs=inputs, outputs=SCORES, constants=CONSTANTS)
    calib = {"x": images(), "other": random(8, 3, 8, 8, seed=1)}
    result = survives(model, calib)
    assert layers(result) == ["Conv", "Conv", "Gemm"]
    assert run(result, *calib.values())[0].shape == (8, 5)


def sequence(nodes: Sequence[onnx.NodeProto], width: int | None, outputs: dict[str, list]) -> onnx.ModelProto:
    """A text recognizer: the image's columns as steps [T, N, C]."""
    first = [
        *stem(),
        node("ReduceMax", "r1", "m", axes=[2], keepdims=0),
        node("Transpose", "m", "steps", perm=[2, 0, 1]),
    ]
    constants = {
        "w1": CONSTANTS["w1"],
        "lw": random(2, 16, 4),
        "lr": random(2, 16, 4),
        "lb": random(2, 32),
        "w5": random(8, 6),
        "b5": random(6),
        "w6": random(6, 6),
        "to": np.array([0, 0, -1]),
    }
    inputs = {"x": [None, 3, 8, width]}
    return build([*first, *nodes], inputs=inputs, outputs=outputs, constants=constants)


@pytest.mark.parametrize("width", [8, None])
def test_a_recurrent_head_of_several_layers(width: int | None) -> None:
    nodes = [
        node("LSTM", "steps lw lr lb", "t", hidden_size=4, direction="bidirectional"),
        node("Transpose", "t", "t1", perm=[0, 2, 1, 3]),
        node("Reshape", "t1 to", "t2"),
        node("MatMul", "t2 w5", "t3"),
        node("Add", "t3 b5", "t4"),
        node("Relu", "t4", "t5"),
        node("MatMul", "t5 w6", "t6"),
        node("Transpose", "t6", "t7", perm=[1, 0, 2]),
        node("Softmax", "t7", "y", axis=2),
    ]
    result = survives(sequence(nodes, width, {"y": [None, width, 6]}))
    assert len(layers(result)) == 3
    assert run(result, images(3, 3, 8, 8))[0].shape == (3, 8, 6)


def test_an_output_without_a_gradient_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    model.graph.node.extend([node("Greater", "y zero", "g"), node("Cast", "g", "mask", to=1)])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    model.graph.output[0].name = "mask"
    with caplog.at_level(logging.WARNING, logger="pdq_export"):
        result = survives(model)
    assert "the prediction difference is measured at 'y'" in caplog.text
    assert json.loads(result.report.to_json())["predictions"] == {"mask": ["y"]}


@pytest.mark.parametrize(("size", "fits"), [(0.02, False), (1.0, True)])
def test_a_hard_sigmoid_is_told_as_float_where_no_scale_fits(size: float, fits: bool) -> None:
    """Its input, far from the knees, would lose bits if its scale divided the ramp."""
    nodes = [node("Conv", "x w1", "c1", **PAD), node("HardSwish", "c1", "h"), node("Conv", "h w2", "c2", **PAD)]
    constants = {**CONSTANTS, "w1": CONSTANTS["w1"] * size}
    result = survives(build([*nodes, *head("c2")], inputs=INPUT, outputs=SCORES, constants=constants))
    told = [layer["op_type"] for layer in result.report.floating]
    assert ("HardSigmoid" not in told) is fits
    assert ("HardSigmoid" not in result.report.kernels.between_pairs) is fits


def test_labels_for_an_output_without_classes_are_refused_before_calibration() -> None:
    """A dense output comes first: there is nothing that a label of an image could be compared with."""
    nodes = [*stem(), node("Conv", "r1 w2", "map", **PAD), *head("r1")]
    outputs = {"map": ["N", 4, 8, 8], **SCORES}
    labelled = ImageSet.from_array(images(), labels=np.zeros(8, dtype=np.int64), source="test.npz")
    with pytest.raises(DataError, match=r"test.npz: has labels, but the model's first output 'map' is \[2, 4, 8, 8\]"):
        quantize(build(nodes, inputs=INPUT, outputs=outputs, constants=CONSTANTS), calib=images(), eval=labelled)


def recogniser(batch: int | str) -> onnx.ModelProto:
    """Convolutions, columns as steps of time, LSTM, scores [T, N, K], as text recognisers have them."""
    fixed = isinstance(batch, int)
    return build(
        [
            *stem(),
            node("Transpose", "r1", "t", perm=[3, 0, 1, 2]),
            node("Reshape", "t steps", "s"),
            node("LSTM", "s w r", "l", hidden_size=6),
            node("Reshape" if fixed else "Squeeze", "l joined" if fixed else "l one", "q"),
            node("MatMul", "q k", "y"),
        ],
        inputs={"x": [batch, 3, 8, 8]},
        outputs={"y": [8, batch, 5]},
        constants={
            **CONSTANTS,
            "steps": np.array([8, batch if fixed else -1, 32]),
            "joined": np.array([8, batch, 6]) if fixed else np.array([1]),
            "one": np.array([1]),
            "w": random(1, 24, 32) / 8,
            "r": random(1, 24, 6, seed=1) / 4,
            "k": random(6, 5),
        },
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_a_recogniser_with_a_fixed_batch_is_the_one_with_any(batch: int) -> None:
    x = random(8, 3, 8, 8)  # as many as steps
    options = {"options": TINY, "device": "cpu", "bits": "4/4"}
    fixed, free = (quantize(recogniser(size), calib=x, **options) for size in (batch, "N"))
    assert inspect_model(recogniser(batch)).problems == ()
    assert fixed.tensors.keys() == free.tensors.keys()
    for name, tensor in fixed.tensors.items():
        np.testing.assert_allclose(tensor.scale, free.tensors[name].scale, rtol=1e-4)
        np.testing.assert_array_equal(tensor.integers, free.tensors[name].integers)
    assert fixed.report.outputs[0].simulated_float.sqnr_db == pytest.approx(
        free.report.outputs[0].simulated_float.sqnr_db, abs=0.1
    )


@pytest.mark.parametrize("count", [16, 17])
def test_the_images_of_a_recogniser_are_counted_not_its_steps(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the search for collapse, where 17 are parts of 9 and 8 images, and in the report."""
    x, judged = random(count, 3, 8, 8), []
    monkeypatch.setattr(collapse, "warn_of_collapse", lambda _, *values: judged.extend(values[:2]))
    result = quantize(recogniser("N"), calib=x, options={**TINY, "samples": count}, device="cpu", bits="4/4")
    assert [tuple(values.shape) for values in judged] == [(count, 8, 5)] * 2
    (output,) = result.report.outputs
    assert output.quantized_float.images == output.simulated_float.images == count
    sessions = [Session(model.SerializeToString()) for model in (recogniser("N"), result.model)]
    floats, quantized = (session.run(x)[0] for session in sessions)
    norms = [np.linalg.norm(values, axis=(0, 2)) for values in (quantized - floats, floats)]
    assert output.quantized_float.median_relative_error == pytest.approx(np.median(norms[0] / norms[1]), rel=1e-3)


def test_boxes_without_an_axis_of_images() -> None:
    """A detector for one image at a time."""
    model = build(
        [*stem(), node("Conv", "r1 k", "c"), node("Reshape", "c shape", "y")],
        inputs={"x": [1, 3, 8, 8]},
        outputs={"y": [14, 64]},
        constants={**CONSTANTS, "k": random(14, 4, 1, 1), "shape": np.array([14, -1])},
    )
    result = quantize(model, calib=random(5, 3, 8, 8), options=TINY, device="cpu", bits="8/8")
    assert result.report.outputs[0].simulated_float.sqnr_db > 25


def test_a_wrong_shape_of_an_output_is_told_and_written_right(caplog: pytest.LogCaptureFixture) -> None:
    model = build([*stem(), *head()], inputs=INPUT, outputs={"y": ["N", 5]}, constants=CONSTANTS)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    result = quantize(model, calib=random(8, 3, 8, 8), options=TINY, device="cpu")
    assert "output 'y': declares the shape ['N', 7], but its node computes ['N', 5]" in caplog.text
    assert result.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 5
    assert inspect_model(model).problems == ()


def bytes_in() -> onnx.ModelProto:
    """Images in bytes, brought to floats and normalized in the graph."""
    model = build(
        [
            node("Cast", "x", "floats", "cast", to=TensorProto.FLOAT),
            node("Sub", "floats mean", "s"),
            node("Div", "s std", "z"),
            node("Conv", "z w1", "c1", **PAD),
            node("Relu", "c1", "r1"),
            *head(),
        ],
        inputs=INPUT,
        outputs=SCORES,
        constants={**CONSTANTS, "mean": np.float32([[[120]], [[110]], [[100]]]), "std": np.full((3, 1, 1), 60, "f4")},
    )
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def test_bytes_as_input_are_refused_and_the_model_behind_the_cast_is_not(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8)).astype(np.float32)
    with pytest.raises(ModelError, match=r"input 'x': is uint8; .*; start the model behind it") as error:
        quantize(bytes_in(), calib=images, options=TINY, device="cpu")
    (call,) = re.findall(r"onnx\.utils\.extract_model\([^)]*\)", str(error.value))
    file, part = str(tmp_path / "file.onnx"), str(tmp_path / "part.onnx")
    onnx.save(bytes_in(), file)
    eval(call, {"onnx": onnx, "old_path": file, "new_path": part})
    result = quantize(part, calib=images, bits="8/8", options=TINY, device="cpu")
    assert [value.name for value in result.model.graph.input] == ["floats"]
    assert result.report.outputs[0].simulated_float.sqnr_db > 20


def training(kind: str, mode: bool) -> onnx.ModelProto:
    """With a BatchNormalization or Dropout as a network in training exports it, or the same for inference."""
    if kind == "Dropout":
        nodes = [node("Dropout", f"c1 ratio {'on' if mode else '-'}", "n", "odd")]
    else:
        outputs, attributes = ("n mean variance", {"training_mode": 1}) if mode else ("n", {"training_mode": 0})
        nodes = [node(kind, "c1 n.g n.b n.m n.v", outputs, "odd", **attributes)]
    return build(
        [node("Conv", "x w1", "c1", **PAD), *nodes, node("Relu", "n", "r1"), *head()],
        inputs=INPUT,
        outputs=SCORES,
        constants={**CONSTANTS, **norm_constants(4), "ratio": np.array(0.5, np.float32), "on": np.array(True)},
    )


@pytest.mark.parametrize("kind", ["BatchNormalization", "Dropout"])
def test_training_mode_is_refused_before_anything_else_is_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    x = random(8, 3, 8, 8)
    for run in (
        lambda: quantize(training(kind, True), calib=x, options=TINY),
        lambda: inspect_model(training(kind, True)),
    ):
        with pytest.raises(ModelError, match=rf"node 'odd' \({kind}\): .*training.*; expected inference; export after"):
            run()
    assert not caplog.records
    assert quantize(training(kind, False), calib=x, bits="8/8", options=TINY, device="cpu").report.images == 8
