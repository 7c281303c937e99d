"""No Clip is written twice: where a tensor is bounded anyhow there is none, and outputs are those with all of them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pdq_export.export import Layout, assemble, native, ort, qcdq, settle
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths, Plan, Point, QuantizedTensor, Role
from pdq_export.validate import Session

from . import toy_networks as nets
from .toy_quantizer import calibrate, quantized_tensor

WITH_ALL_CLIPS = 3  # the last form that had them
LAYOUTS = {"ort": ort.LAYOUT, "native": native.LAYOUT, "qcdq": qcdq.LAYOUT}
WEIGHTS = {f"{name}{i}": shape for i in range(8) for name, shape in (("w", (4, 4, 3, 3)), ("b", (4,)))}
CONSTANTS = {"zero": 0.0, "six": 6.0, "one": 1.0, "half": 0.5, "below": -0.4}
SHAPE = (2, 4, 8, 8)


def network(body: str, outputs: str = "y") -> onnx.ModelProto:
    results = ", ".join(f"float[N,A,B,C] {name}" for name in outputs.split())
    model = nets.network(f"(float[N,4,8,8] x) => ({results}) {{ {body} }}", WEIGHTS)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.float32), name) for name, value in CONSTANTS.items()
    )
    return model


def written(
    model: onnx.ModelProto, plan: Plan, tensors: Mapping[str, QuantizedTensor], layout: Layout, form: int | None = None
) -> onnx.ModelProto:
    model.opset_import[0].version = max(layout.required_opset(plan), 21)
    quantized = settle(model, plan, tensors)
    if form is not None:
        quantized = dataclasses.replace(quantized, form=form)
    return assemble(model, layout.write(quantized), layout=layout, metadata={})


def point(tensor: str, bits: int, absorbed: str | None = None) -> Point:
    return Point(tensor=tensor, role=Role.CARRIER if bits == 8 else Role.ACTIVATION, bits=bits, absorbed=absorbed)


def graph(
    body: str,
    points: Mapping[str, tuple[int, float, int]],
    layout: Layout = ort.LAYOUT,
    *,
    absorbed: Mapping[str, str] | None = None,
    outputs: str = "y",
    unquantized: Mapping[str, tuple[str, ...]] | None = None,
) -> GraphIndex:
    """What is written of nodes without weights. ``points``: bits, scale and zero_point by tensor."""
    model = network(body, outputs)
    planned = {name: point(name, bits, (absorbed or {}).get(name)) for name, (bits, _, _) in points.items()}
    plan = Plan(
        bits=BitWidths(4, 4), points=planned, passthrough={}, layers=(), blocks=(), unquantized=unquantized or {}
    )
    tensors = {name: quantized_tensor(planned[name], scale, zero) for name, (_, scale, zero) in points.items()}
    files = [written(model, plan, tensors, layout, form) for form in (None, WITH_ALL_CLIPS)]
    x = 8 * nets.images(SHAPE)
    check_equal(files, x, optimize=(False,) if layout is not ort.LAYOUT else (False, True))
    return GraphIndex(files[0])


def check_equal(files: Sequence[onnx.ModelProto], x: np.ndarray, *, optimize: Sequence[bool]) -> None:
    for choice in optimize:
        few, many = (Session(file.SerializeToString(), optimize=choice).run(x) for file in files)
        for one, other in zip(few, many, strict=True):
            np.testing.assert_array_equal(one, other)


def operators(index: GraphIndex) -> list[str]:
    """Those that bound something, in order."""
    return [node.op_type for node in index.graph.node if node.op_type in ("Clip", "Max", "Min", "Relu")]


def bounds(index: GraphIndex, tensor: str) -> list[int]:
    return [index.constant(name).item() for name in index.producer[tensor].input[1:]]


# One by one


@pytest.mark.parametrize(
    ("function", "scale", "zero_point", "clips"),
    [
        ("Sigmoid(x)", 1 / 15, 0, 0),
        ("HardSigmoid(x)", 1 / 15, 0, 0),
        ("Softmax(x)", 1 / 15, 0, 0),
        ("Tanh(x)", 1 / 7, 7, 0),
        ("Tanh(x)", 1 / 8, 8, 1),  # 1 would be 16
        ("Sigmoid(x)", 1 / 20, 0, 1),
        ("Sigmoid(x)", 1 / 15.6, 0, 1),  # would be 16
        ("Sigmoid(x)", 1 / 14, 2, 1),
        ("Sigmoid(x)", 1 / 15.495, 0, 1),  # too near to 15.5 for arithmetic in float32
        ("Clip(x, below, six)", 6 / 14, 1, 0),
        ("Clip(x, below, six)", 6 / 15, 1, 1),
        ("Clip(x, below, six)", 6 / 14, 0, 0),  # the type's own bound
        ("Clip(x, zero)", 0.1, 0, 1),
        ("Relu(x)", 10.0, 0, 1),
        ("LeakyRelu(x)", 10.0, 2, 1),
    ],
)
def test_a_function_with_few_results_needs_no_clip(function: str, scale: float, zero_point: int, clips: int) -> None:
    index = graph(f"r = {function} y = Add(r, r)", {"r": (4, scale, zero_point)})
    floats = 1 if function.startswith("Clip") else 0
    assert operators(index).count("Clip") == clips + floats
    textbook = graph(f"r = {function} y = Add(r, r)", {"r": (4, scale, zero_point)}, qcdq.LAYOUT)
    assert bounds(textbook, "r_clipped") == [0, 15]  # which says how many bits there are


@pytest.mark.parametrize(("scale", "limits"), [(1 / 7, []), (1 / 10, ["Min"])])
def test_native_limits_what_is_not_bounded(scale: float, limits: list[str]) -> None:
    index = graph("r = Sigmoid(x) y = Add(r, r)", {"r": (3, scale, 0)}, native.LAYOUT)
    assert operators(index) == limits


def test_what_is_seen_keeps_its_relu6_and_is_clipped_once() -> None:
    wide, narrow = (
        graph("y = Clip(x, zero, six) z = Add(y, y)", {"y": (4, scale, 0)}, outputs="y z", absorbed={"y": "Clip_y"})
        for scale in (6 / 15, 6 / 20)
    )
    assert operators(wide) == ["Clip"]
    assert wide.producer["y"].op_type == "Clip"
    assert operators(narrow) == ["Clip", "Clip"]


def test_relu6_and_bits_are_one_clip_with_the_tighter_bound() -> None:
    for scale, highest in ((6 / 20, 15), (6 / 11, 11)):
        index = graph("r = Clip(x, zero, six) y = Neg(r)", {"r": (4, scale, 0)}, absorbed={"r": "Clip_r"})
        assert bounds(index, "r_clipped") == [0, highest]
        assert operators(index) == ["Clip"]


@pytest.mark.parametrize(("operator", "scale", "clips"), [("Add", 0.2, 0), ("Add", 0.12, 1), ("Mul", 0.1, 0)])
def test_what_is_made_of_bounded_tensors_is_bounded(operator: str, scale: float, clips: int) -> None:
    body = f"s = Sigmoid(x) t = Clip(x, zero, one) r = {operator}(s, t) y = Add(r, r)"
    points = {"s": (8, 1 / 255, 0), "t": (8, 1 / 255, 0), "r": (4, scale, 0)}
    assert operators(graph(body, points)).count("Clip") == 1 + clips


@pytest.mark.parametrize(
    "body", ["m = MaxPool <kernel_shape=[2,2]> (r) q = Relu(m) y = Mul(q, q)", "q = Transpose(r) y = Mul(q, q)"]
)
def test_between_two_pairs_of_one_tensor_a_clip_stays(body: str) -> None:
    """Without it onnxruntime makes one pair of both, in a scale of its own."""
    index = graph(f"r = Sigmoid(x) {body}", {"r": (4, 1 / 15, 0), "q": (4, 0.1, 0)})
    assert {"r_clipped", "q_clipped"} <= index.producer.keys()


def test_what_is_read_as_it_was_before_quantization_is_not_bounded() -> None:
    body = "r = Sigmoid(x) q = Mul(r, r) y = Add(q, q)"
    points = {"r": (4, 1 / 15, 0), "q": (4, 1 / 15, 0)}
    assert not operators(graph(body, points))
    assert "q_clipped" in graph(body, points, unquantized={"Mul_q": ("r",)}).producer


def test_a_gate_behind_a_clip_is_one_clip() -> None:
    """The HardSigmoid of a ReLU6 that is 8 bits wide: both are Clips of the same integers."""
    body = "r = Clip(x, zero, six) h = HardSigmoid <alpha = 0.5, beta = 0.5> (r) y = Neg(h)"
    points = {"r": (8, 1 / 40, 100), "h": (8, 0.5 / 40, 60)}
    index = graph(body, points, absorbed={"r": "Clip_r"})
    assert operators(index) == ["Clip"]
    assert bounds(index, "h_clipped") == [100, 140]
    assert index.producer["h_clipped"].input[0] == "r_quantized"
    both = graph(body.replace("Neg(h)", "Mul(h, r)"), points, absorbed={"r": "Clip_r"})
    assert [both.producer[f"{name}_clipped"].input[0] for name in "rh"] == ["r_quantized", "r_quantized"]


@pytest.mark.parametrize(
    ("bits", "scale", "kept"),
    [(4, 6 / 15, False), (4, 6 / 20, False), (4, 6 / 12, True), (8, 6 / 255, True), (8, 6 / 200, True)],
)
def test_relu6_before_few_bits_is_a_relu_in_qcdq(bits: int, scale: float, kept: bool) -> None:
    index = graph("r = Clip(x, zero, six) y = Neg(r)", {"r": (bits, scale, 0)}, qcdq.LAYOUT)
    assert index.producer["r"].op_type == ("Clip" if kept else "Relu")
    assert "r_clipped" not in index.producer if bits == 8 else bounds(index, "r_clipped") == [0, 15]


@pytest.mark.parametrize("body", ["r = Clip(x, below, six)", "r = Clip(x, half, six)", "r = Clip(x, , six)"])
def test_other_clips_stay_in_qcdq(body: str) -> None:
    index = graph(f"{body} y = Neg(r)", {"r": (4, 0.4, 2)}, qcdq.LAYOUT)
    assert index.producer["r"].op_type == "Clip"


def test_relu6_that_is_seen_stays_in_qcdq() -> None:
    index = graph("y = Clip(x, zero, six) z = Neg(y)", {"y": (4, 0.4, 0)}, qcdq.LAYOUT, outputs="y z")
    assert index.producer["y"].op_type == "Clip"


# Any network

STEPS = {
    "conv": "Conv <pads=[1,1,1,1]> ({0}, w{i}, b{i})",
    "relu": "Relu({0})",
    "relu6": "Clip({0}, zero, six)",
    "narrow": "Clip({0}, below, half)",
    "leaky": "LeakyRelu({0})",
    "sigmoid": "Sigmoid({0})",
    "gate": "HardSigmoid <alpha = 0.16666667, beta = 0.5> ({0})",
    "tanh": "Tanh({0})",
    "pool": "MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> ({0})",
    "mean": "AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> ({0})",
    "add": "Add({0}, {1})",
    "mul": "Mul({0}, {1})",
    "identity": "Transpose <perm=[0,1,3,2]> ({0})",
}


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A few steps, each of the tensor before or an earlier one, between convolutions; some tensors are outputs, too."""
    tensors = ["t0"]
    lines = ["t0 = Conv <pads=[1,1,1,1]> (x, w0, b0)"]
    for i, step in enumerate(draw(st.lists(st.sampled_from([*STEPS]), min_size=1, max_size=5)), 1):
        other = draw(st.sampled_from(tensors))
        lines.append(f"t{i} = {STEPS[step].format(tensors[-1], other, i=i)}")
        tensors.append(f"t{i}")
    lines.append(f"last = Conv ({tensors[-1]}, w6, b6) y = Conv(last, w7, b7)")  # the last layer's input has 8 bits
    seen = draw(st.lists(st.sampled_from(tensors), max_size=1))
    return network(" ".join(lines), " ".join(["y", *seen]))


def moved(draw: st.DrawFn, plan: Plan, tensors: Mapping[str, QuantizedTensor]) -> dict[str, QuantizedTensor]:
    """Scales and zero points as calibration might find them, around those that bound everything."""
    found = dict(tensors)
    for name, planned in plan.points.items():
        if planned.role is not Role.WEIGHT and name not in plan.ramps and planned.absorbed is None:
            factor = draw(st.sampled_from([0.3, 0.8, 0.9, 0.95, 0.97, 1.0, 1.02, 1.05, 2.0]))
            scale = (tensors[name].scale * factor).astype(np.float32)
            found[name] = dataclasses.replace(tensors[name], scale=scale)
    for ramp, planned in plan.ramps.items():
        found[planned.source], found[ramp] = tensors[planned.source], tensors[ramp]
    return found


def directly_clipped(index: GraphIndex) -> Sequence[str]:
    """Clips of integers that read what another one gives."""
    clips = [node for node in index.graph.node if node.op_type == "Clip" and node.name.endswith("/Clip")]
    return [node.name for node in clips if index.producer[node.input[0]].op_type == "Clip"]


BETWEEN = [step for step in STEPS if step != "conv"]  # a layer's output is bounded by its integers alone


PAIRS_IN_A_ROW = [(2, 0.5, 0), (2, 1.0, 0), (2, 1.0, 1), (2, 1.0, 0), (2, 1.0, 0), (2, 1.0, 0)]


@settings(max_examples=100)
@example([("identity", 0), ("identity", 0)], PAIRS_IN_A_ROW, "ort")
@given(
    st.lists(st.tuples(st.sampled_from(BETWEEN), st.integers(0, 5)), min_size=1, max_size=5),
    st.lists(
        st.tuples(st.sampled_from([2, 3, 4, 8, None]), st.floats(0.03, 1), st.integers(0, 3)), min_size=6, max_size=6
    ),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_whatever_is_quantized_outputs_are_those_with_all_clips(
    steps: list[tuple[str, int]], points: list[tuple[int | None, float, int]], name: str
) -> None:
    lines = ["t0 = Neg(x)"]
    for i, (step, other) in enumerate(steps, 1):
        lines.append(f"t{i} = {STEPS[step].format(f't{i - 1}', f't{min(other, i - 1)}', i=i)}")
    quantized = {f"t{i}": (bits, scale, zero) for i, (bits, scale, zero) in enumerate(points) if bits is not None}
    known = {tensor: found for tensor, found in quantized.items() if int(tensor[1:]) <= len(steps)}
    graph(" ".join([*lines, f"y = Neg(t{len(steps)})"]), known, LAYOUTS[name])


@settings(max_examples=60)
@given(st.data(), networks(), st.sampled_from(["8/8", "4/4", "2/2", "4/3", "3/8"]), st.sampled_from(sorted(LAYOUTS)))
def test_outputs_are_those_with_all_clips(data: st.DataObject, model: onnx.ModelProto, bits: str, name: str) -> None:
    layout = LAYOUTS[name]
    model.opset_import[0].version = 25
    plan = make_plan(model, PlanOptions.of(BitWidths.parse(bits)))
    x = 3 * nets.images(SHAPE)
    tensors = moved(data.draw, plan, calibrate(model, plan, {"x": x}))
    few, many = (written(model, plan, tensors, layout, form) for form in (None, WITH_ALL_CLIPS))
    assert not directly_clipped(GraphIndex(few))
    clips = [sum(node.op_type in ("Clip", "Max", "Min") for node in file.graph.node) for file in (few, many)]
    assert clips[0] <= clips[1]
    # As the graph says, and in ort as it is run; in the others it decides what is fused, and so how values are rounded.
    check_equal([few, many], 10 * x, optimize=(False, True) if name == "ort" else (False,))
