"""`native` and `qcdq` hold the integers of `ort`: without optimizations, outputs are equal to the bit."""

import collections

import numpy as np
import onnx
import pytest

from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths
from pdq_export.targets import find_target
from pdq_export.validate import Session, needed_config

from ..installed import onnxruntime_is
from . import toy_networks as nets
from .toy_quantizer import calibrate

BITS = ["8/8", "6/5", "4/4", "3/3", "2/2", "4/2", "2/4"]
STEM = "c = Conv <pads=[1,1,1,1]> (x, w, b)"
TAIL = "m = Conv(z, v, d) k = Relu(m) y = Conv(k, last, d)"  # first and last layer have 8 bits whatever is asked for
WEIGHTS = {"w": (8, 3, 3, 3), "b": (8,), "v": (6, 8, 3, 3), "d": (6,), "last": (6, 6, 1, 1)}


def network(text: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    return nets.network(f"(float[N,3,12,12] x) => (float[N,6,A,B] y) {{ {text} {TAIL} }}", {**WEIGHTS, **weights})


def clipped() -> onnx.ModelProto:
    model = network(f"{STEM} r = Clip(c, low, high) z = MaxPool <kernel_shape=[2,2]> (r)")
    for name, value in (("low", 0.0), ("high", 0.7)):
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
    return model


NETS = {
    "chain": nets.chain,
    "residual": nets.residual,
    "depthwise": lambda: network(f"{STEM} r = Relu(c) e = Conv <group=8> (r, g, b) z = Relu(e)", g=(8, 1, 3, 3)),
    "transposed": lambda: network(
        f"{STEM} r = Relu(c) z = ConvTranspose <strides=[2,2], group=2> (r, t, b)", t=(8, 4, 2, 2)
    ),
    "concat": lambda: network(f"{STEM} r = Relu(c) l = LeakyRelu(c) z = Concat <axis=1> (l, r)", v=(6, 16, 3, 3)),
    "add": lambda: network(f"{STEM} e = Conv <pads=[1,1,1,1]> (c, g, b) z = Add(e, c)", g=(8, 8, 3, 3)),
    "leaky": lambda: network(f"{STEM} z = LeakyRelu <alpha=0.2> (c)"),
    "clipped": clipped,
    "shared": lambda: network(
        f"{STEM} r = Relu(c) e = Conv <pads=[1,1,1,1]> (r, g, b) f = Relu(e) h = Conv <pads=[1,1,1,1]> (f, g, b) "
        "z = Relu(h)",
        g=(8, 8, 3, 3),
    ),
    "attention": lambda: network(f"{STEM} s = Sigmoid(c) z = Mul(c, s)"),
}


LAYOUTS = ("ort", "native", "qcdq")


def export(
    name: str, bits: str, target: str, *, symmetric: bool = False, opset_of: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """``opset_of``: targets whose opset it has as well, where theirs is newer."""
    model, widths, chosen = NETS[name](), BitWidths.parse(bits), find_target(target)
    plan = make_plan(model, PlanOptions.of(widths))
    opset = max(find_target(each).required_opset(plan) for each in (target, *opset_of))
    model.opset_import[0].version = opset
    plan = make_plan(model, PlanOptions.of(widths, weights="symmetric" if symmetric else "asymmetric"))
    return chosen.export(model, plan, calibrate(model, plan, feeds(name)), metadata={})


def outputs_as_written(name: str, bits: str, *, symmetric: bool = False) -> list[list[np.ndarray]]:
    """Of each layout. In onnxruntime 1.24 convolutions round another way from opset 22 on: with one opset there."""
    opset_of = () if onnxruntime_is("1.25") else LAYOUTS
    models = [export(name, bits, target, symmetric=symmetric, opset_of=opset_of) for target in LAYOUTS]
    x = feeds(name)["x"]
    return [Session(model.SerializeToString(), optimize=False).run(x) for model in models]


def feeds(name: str):
    return {"x": nets.images((2, 4 if name == "residual" else 3, 12, 12))}


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("bits", ["8/8", "4/4"])
@pytest.mark.parametrize("name", NETS)
def test_what_dequantizes_along_an_axis_has_one_reader(
    name: str, bits: str, target: str, small_weights_are_packed: None
) -> None:
    """Of such a node with several, onnxruntime makes several, and 1.15 leaves the axis out."""
    graph = export(name, bits, target).graph
    along = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.attribute]
    readers = collections.Counter(tensor for node in graph.node for tensor in node.input)
    assert along
    assert {readers[node.output[0]] for node in along} == {1}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NETS)
def test_outputs_are_equal_to_the_bit(name: str, bits: str, small_weights_are_packed: None) -> None:
    outputs = outputs_as_written(name, bits)
    for other in outputs[1:]:
        assert len(other) == len(outputs[0])
        assert all((a == b).all() for a, b in zip(outputs[0], other, strict=True))
    assert outputs[0][0].std() > 0


@pytest.mark.parametrize("bits", ["8/8", "7/7", "4/4", "3/3", "2/2"])
def test_symmetric_weights_too(bits: str, small_weights_are_packed: None) -> None:
    first, *others = outputs_as_written("depthwise", bits, symmetric=True)
    assert all((other[0] == first[0]).all() for other in others)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NETS)
def test_every_layout_loads_and_says_with_which_option(name: str, bits: str, small_weights_are_packed: None) -> None:
    assert needed_config(export(name, bits, "ort").SerializeToString()) == {}
    assert needed_config(export(name, bits, "qcdq").SerializeToString()) == {}
    config = needed_config(export(name, bits, "native").SerializeToString())
    assert config in ({}, {"session.disable_quant_qdq": "1"})
    if bits in ("8/8", "6/5"):
        assert config == {}
    if name == "chain" and bits in ("4/4", "2/2"):  # a MaxPool between narrow pairs
        assert config or (bits == "2/2" and not onnxruntime_is("1.28"))


@pytest.mark.parametrize("target", LAYOUTS)
def test_a_clip_whose_bound_is_computed_stays_one(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETS, "computed", computed_bound)
    assert [node.op_type for node in export("computed", "4/4", target).graph.node if "z" in node.output][:1] != ["Relu"]


def computed_bound() -> onnx.ModelProto:
    model = network(f"{STEM} high = ReduceMax <keepdims=0> (c) z = Clip(c, low, high)")
    model.graph.initializer.append(onnx.helper.make_tensor("low", onnx.TensorProto.FLOAT, [], [0.0]))
    return model
