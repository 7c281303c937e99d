"""Quant nodes as FINN, hls4ml and QONNX's executor read them, interpreted in numpy against the `ort` file."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export import convert
from pdq_export.arithmetic.bias import bias_integers, bias_scale, smallest_weight_scale
from pdq_export.errors import ExportError
from pdq_export.export.constants import Bias, Weight
from pdq_export.export.qonnx_constants import bias_values, read_bias, read_weight, weight_values
from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import Point, Role
from pdq_export.targets import find_target
from pdq_export.validate import Session

from ..quant_reference import quant, run_qonnx
from . import toy_networks as nets
from .test_layouts_agree import BITS, NETS, export, feeds
from .toy_quantizer import calibrate, quantized_tensor

DOMAIN = "qonnx.custom_op.general"


def quants(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (node for node in model.graph.node if node.op_type == "Quant")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NETS)
def test_what_it_computes_is_what_the_integers_give(name: str, bits: str) -> None:
    (expected,) = Session(export(name, bits, "ort").SerializeToString(), optimize=False).run(feeds(name)["x"])
    (found,) = run_qonnx(export(name, bits, "qonnx"), feeds(name))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bits", ["8/8", "4/4", "2/2"])
def test_symmetric_weights_too(bits: str) -> None:
    ort, qonnx = (export("depthwise", bits, target, symmetric=True) for target in ("ort", "qonnx"))
    (expected,) = Session(ort.SerializeToString(), optimize=False).run(feeds("depthwise")["x"])
    (found,) = run_qonnx(qonnx, feeds("depthwise"))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_every_quant_is_one_that_tools_read(name: str, symmetric: bool) -> None:
    model = export(name, "3/4", "qonnx", symmetric=symmetric)
    index, seen = GraphIndex(model), set()
    assert {"Quant"} == {node.op_type for node in model.graph.node if node.domain}
    assert [(known.domain, known.version) for known in model.opset_import if known.domain] == [(DOMAIN, 1)]
    assert not any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "Sum") for node in model.graph.node)
    for node in quants(model):
        x, scale, zeropt, bits = (index.constant(each) for each in node.input)
        assert {value.dtype for value in (scale, zeropt, bits)} == {np.dtype(np.float32)}
        assert (scale > 0).all()
        assert bits.ndim == 0
        assert attribute(node, "rounding_mode") == "ROUND"
        seen.add((x is not None, int(bits), attribute(node, "signed"), attribute(node, "narrow")))
        if x is not None and x.ndim == 4 and index.consumers(node.output[0])[0].op_type.startswith("Conv"):
            transposed = index.consumers(node.output[0])[0].op_type == "ConvTranspose"
            channels = x.shape[1] if transposed else x.shape[0]
            assert scale.shape == ((1, channels, 1, 1) if transposed else (channels, 1, 1, 1))
            assert zeropt.shape in ((), scale.shape)
            assert zeropt.ndim or not zeropt
            again = quant(x, scale, zeropt, bits, signed=attribute(node, "signed"), narrow=attribute(node, "narrow"))
            assert (again == x).all()
        elif x is None:
            assert (scale.shape, zeropt.shape) == ((), ())
    weights = {row[1:] for row in seen if row[0]} - {(8, 0, 0)}  # constant operands are activations
    assert weights <= {(8, 1, 1), (3, int(symmetric), 0), (7, 1, 0)}
    assert {row[2:] for row in seen if not row[0]} <= {(0, 0), (1, 0)}


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 128), (4, 8), (2, 2), (8, 127), (4, 7), (2, 1)])
def test_integers_about_their_middle_are_signed(bits: int, zero_point: int) -> None:
    """Whatever else they have as zero_point stays; in both cases the integers are those of `ort`."""
    model = nets.chain()
    plan = make_plan(model, PlanOptions.of("4/4"))
    (point,) = (each for each in plan.points.values() if each.tensor == "x")
    plan = dataclasses.replace(plan, points={**plan.points, "x": dataclasses.replace(point, bits=bits)})
    tensors = calibrate(model, plan, feeds("chain"))
    scale = 4.0 / 2**bits
    tensors["x"] = quantized_tensor(plan.points["x"], scale, zero_point)
    files = {
        name: find_target(name).export(model, plan, tensors, metadata={"pdq_export.target": name})
        for name in ("ort", "qonnx")
    }
    index = GraphIndex(files["qonnx"])
    (quantize,) = index.consumers("x")
    middle = zero_point == 2 ** (bits - 1)
    assert attribute(quantize, "signed") == int(middle)
    assert attribute(quantize, "narrow") == 0
    assert index.constant(quantize.input[2]) == (0 if middle else zero_point)
    assert index.constant(quantize.input[3]) == bits
    (expected,) = Session(files["ort"].SerializeToString(), optimize=False).run(feeds("chain")["x"])
    (found,) = run_qonnx(files["qonnx"], feeds("chain"))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    for file in files.values():
        native = convert(file, "native")
        assert {name: convert(native, name).graph for name in files} == {name: files[name].graph for name in files}


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_integers_are_those_about_the_middle_in_every_tie(bits: int) -> None:
    x = np.arange(-(2**bits) * 4, 2**bits * 4, dtype=np.float32) / 8  # halves of steps among them
    signed = quant(x, 0.5, 0, bits, signed=1, narrow=0)
    assert (signed == quant(x, 0.5, 2 ** (bits - 1), bits, signed=0, narrow=0)).all()
    assert len(np.unique(signed)) == 2**bits


def test_attributes_with_defaults_are_written_out() -> None:
    """Without them QONNX has no channels-last convolution."""
    model = nets.network(
        """(float[N,3,9,9] x) => (float[N,4,2,2] y) {
            c = Conv (x, w) r = Relu(c) p = MaxPool <kernel_shape=[2,2]> (r) d = Conv (p, v) s = Relu(d)
            m = AveragePool <kernel_shape=[2,2], strides=[2,2], auto_pad="SAME_UPPER"> (s)
            y = Conv <strides=[1,1]> (m, u)
        }""",
        {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3), "u": (4, 4, 1, 1)},
    )
    plan = make_plan(model, PlanOptions.of("4/4", exclude=["Conv_d"]))
    tensors = calibrate(model, plan, {"x": nets.images((2, 3, 9, 9))})
    index = GraphIndex(find_target("qonnx").export(model, plan, tensors, metadata={}))

    def attributes(node: str) -> dict[str, object]:
        return {item.name: onnx.helper.get_attribute_value(item) for item in index.nodes[node].attribute}

    convolution = {"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "group": 1}
    for node, size in (("Conv_c", 3), ("Conv_d", 3), ("Conv_y", 1)):
        assert attributes(node) == {**convolution, "kernel_shape": [size, size]}
    assert attributes("MaxPool_p") == {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0, 0, 0, 0]}
    assert attributes("AveragePool_m") == {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": b"SAME_UPPER"}


def test_weights_of_8_bits_are_narrow() -> None:
    model = nets.chain()
    plan = make_plan(model, PlanOptions.of("4/4"))
    plan = dataclasses.replace(plan, points={**plan.points, "w2": plan.points["w2"].with_bits(8)})
    tensors = calibrate(model, plan, feeds("chain"))
    index = GraphIndex(find_target("qonnx").export(model, plan, tensors, metadata={}))
    node = index.producer[index.nodes["Gemm_logits"].input[1]]
    assert [attribute(node, name) for name in ("signed", "narrow")] == [1, 1]
    assert index.constant(node.input[3]) == 8
    assert index.constant(node.input[1]).shape == (10, 1)


def test_weights_that_two_layers_share_have_a_quant_each_and_one_initializer() -> None:
    model = nets.network(
        """(float[N,4,6,6] x) => (float[N,4,6,6] y) {
            a = Conv <pads=[1,1,1,1]> (x, w) r = Relu(a) b = Conv <pads=[1,1,1,1]> (r, w) s = Relu(b)
            y = Conv <pads=[1,1,1,1]> (s, w)
        }""",
        {"w": (4, 4, 3, 3)},
    )
    plan = make_plan(model, PlanOptions.of("4/4"))
    tensors = calibrate(model, plan, {"x": nets.images((2, 4, 6, 6))})
    written = find_target("qonnx").export(model, plan, tensors, metadata={})
    index = GraphIndex(written)
    readers = [index.producer[node.input[1]] for node in written.graph.node if node.op_type == "Conv"]
    assert len({node.output[0] for node in readers}) == 3
    assert len({node.input[0] for node in readers}) == 1
    assert all(len(index.consumers(node.output[0])) == 1 for node in readers)


@pytest.mark.parametrize(("scale", "kept"), [(6 / 15, "Relu"), (3 / 15, "Relu"), (7 / 15, "Clip"), (12 / 15, "Clip")])
def test_a_clip_is_a_relu_where_the_integers_end_before_it(scale: float, kept: str) -> None:
    """Of Relu6 and 4 bits: with as many integers below 6 as there are, its upper bound says nothing."""
    model = nets.residual()
    plan = make_plan(model, PlanOptions.of("4/4"))
    x = {"x": 9 * nets.images((2, 4, 12, 12))}
    tensors = calibrate(model, plan, x) | {"r0": quantized_tensor(plan.points["r0"], scale, 0)}
    files = {name: find_target(name).export(model, plan, tensors, metadata={}) for name in ("ort", "qonnx")}
    index = GraphIndex(files["qonnx"])
    (quantize,) = index.consumers("r0")
    assert (quantize.op_type, index.producer["r0"].op_type) == ("Quant", kept)
    (expected,) = Session(files["ort"].SerializeToString(), optimize=False).run(x["x"])
    (found,) = run_qonnx(files["qonnx"], x)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_clip_that_cuts_off_below_the_middle_stays() -> None:
    model = nets.residual()
    bound = next(tensor for tensor in model.graph.initializer if tensor.name == "zero")
    bound.CopyFrom(onnx.numpy_helper.from_array(np.array(-6, np.float32), "zero"))
    plan = make_plan(model, PlanOptions.of("4/4"))
    tensors = calibrate(model, plan, {"x": nets.images((2, 4, 12, 12))})
    index = GraphIndex(find_target("qonnx").export(model, plan, tensors, metadata={}))
    assert index.producer["r0"].op_type == "Clip"


def test_biases_are_floats_on_the_grid_of_the_sums() -> None:
    index = GraphIndex(export("chain", "4/4", "qonnx"))
    for name in ("Conv_c0", "Conv_c1"):
        node = index.nodes[name]
        bias = index.constant(node.input[2])
        product = index.constant(index.producer[node.input[1]].input[1]).reshape(-1) * _input_scale(index, node)
        assert np.abs(bias / product - np.rint(bias / product)).max() < 1e-3


def _input_scale(index: GraphIndex, node: onnx.NodeProto) -> np.ndarray:
    producer = index.producer[node.input[0]]
    while producer.op_type != "Quant":
        producer = index.producer[producer.input[0]]
    return index.constant(producer.input[1])


def weight(bits: int, symmetric: bool, seed: int, size: float) -> Weight:
    point = Point(tensor="w", role=Role.WEIGHT, bits=bits, axis=0, symmetric=symmetric or bits == 8)
    draw = np.random.default_rng(seed)
    zero_point = np.zeros(16) if point.symmetric else draw.integers(0, point.qmax + 1, 16)
    return Weight(
        point=point,
        integers=np.stack([draw.permutation(np.resize(np.arange(point.qmin, point.qmax + 1), 512)) for _ in range(16)])
        .reshape(16, 8, 8, 8)
        .astype(np.int16),
        zero_point=zero_point.astype(np.int16),
        scale=(size * draw.uniform(1, 2, 16)).astype(np.float32),
    )


@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 2**32), exponent=st.integers(-145, 118))
def test_no_rounding_moves_an_integer_of_a_weight(bits: int, symmetric: bool, seed: int, exponent: int) -> None:
    """Whatever the scales, down to what float32 has no normal numbers for."""
    known = weight(bits, symmetric, seed, 2.0**exponent)
    values, scale = weight_values(known), known.scale.reshape(-1, 1, 1, 1)
    zeropt = known.zero_point.reshape(-1, 1, 1, 1)
    narrow = int(known.point.qmin == -known.point.qmax)
    again = quant(values, scale, zeropt, bits, signed=int(known.point.symmetric), narrow=narrow)
    assert (again == values).all()
    read = read_weight(values, scale, known.point, known.zero_point)
    assert (read.integers == known.integers).all()
    assert (read.scale == known.scale).all()
    assert (read.zero_point == known.zero_point).all()


def test_weights_beyond_float32_are_refused() -> None:
    known = dataclasses.replace(weight(8, True, 0, 1.0), scale=np.full(16, 3e37, np.float32))
    with pytest.raises(ExportError, match=r"weight 'w': its integers times its scale, up to 3e\+37, are no floats"):
        weight_values(known)


@given(
    seed=st.integers(0, 2**32),
    size=st.floats(-30, 12).map(lambda power: 10.0**power),
    input_size=st.floats(-6, 3).map(lambda power: 10.0**power),
    weight_size=st.floats(-18, 3).map(lambda power: 10.0**power),
)
def test_biases_come_back_to_the_bit(seed: int, size: float, input_size: float, weight_size: float) -> None:
    """Also where they take 30 bits, and where a weight's scale was raised so that they fit."""
    draw = np.random.default_rng(seed)
    value = (size * draw.normal(size=64)).astype(np.float32)
    input_scale = np.float32(input_size * draw.uniform(1, 2))
    learned = (weight_size * draw.uniform(1, 2, 64)).astype(np.float32)
    scale = np.maximum(learned, smallest_weight_scale(value, input_scale, learned))
    bias = Bias(
        tensor="b", integers=bias_integers(value, input_scale, scale), scale=bias_scale(value, input_scale, scale)
    )
    read = read_bias("b", bias_values(bias, input_scale, scale), input_scale, scale)
    assert (read.integers == bias.integers).all()
    assert (read.scale == bias.scale).all()


def test_a_bias_that_is_of_no_float_is_refused() -> None:
    one = np.ones(2, np.float32)
    bias = Bias(tensor="b", integers=np.array([5, 2**24 + 1], np.int32), scale=one)
    with pytest.raises(ExportError, match=r"bias 'b': 16777217 at scale 1\.0, of channel 1, is not what any float"):
        bias_values(bias, np.float32(1), one)
