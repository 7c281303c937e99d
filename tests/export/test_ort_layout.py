"""Layout rules, one by one, on graphs that are small enough to read."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest

from pdq_export.errors import ExportError
from pdq_export.export import Packing, export_model
from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths, Layer, Plan, Point, Role

from . import toy_networks as nets
from .toy_quantizer import calibrate, observe, simulate

WEIGHTS = {"w": (4, 3, 3, 3), "b": (4,)}
CONV = "c = Conv <pads=[1,1,1,1]> (x, w, b)"


def carrier(tensor: str) -> Point:
    return Point(tensor=tensor, role=Role.CARRIER, bits=8)


def activation(tensor: str, bits: int = 4, absorbed: str | None = None) -> Point:
    return Point(tensor=tensor, role=Role.ACTIVATION, bits=bits, absorbed=absorbed)


def weight(tensor: str, bits: int = 4, axis: int = 0, symmetric: bool = False) -> Point:
    return Point(tensor=tensor, role=Role.WEIGHT, bits=bits, axis=axis, symmetric=symmetric)


def plan_of(model, *points, **passthrough) -> Plan:
    """A plan with these points; its layers are the weighted nodes."""
    layers = tuple(
        Layer(
            node=node.name,
            op_type=node.op_type,
            input=node.input[0],
            weight=node.input[1],
            bias=node.input[2] if len(node.input) > 2 else None,
            output=node.output[0],
        )
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    )
    return Plan(
        bits=BitWidths(4, 4),
        points={point.tensor: point for point in points},
        passthrough=passthrough,
        layers=layers,
        blocks=(),
    )


def export(model, plan, x=None, *, shape=(2, 3, 6, 6), changed=None):
    x = nets.images(shape) if x is None else x
    tensors = {**calibrate(model, plan, {"x": x}), **(changed or {})}
    return GraphIndex(export_model(model, plan, tensors, metadata={}))


def check_against_simulation(model, plan, x, changed=None, packing=Packing.BYTES):
    tensors = {**calibrate(model, plan, {"x": x}), **(changed or {})}
    exported = export_model(model, plan, tensors, metadata={}, packing=packing)
    names = [value.name for value in model.graph.output]
    expected = simulate(model, plan, tensors, {"x": x})
    for name, value in observe(exported, names, {"x": x}).items():
        if name in expected:
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)
    return GraphIndex(exported)


def upstream(index: GraphIndex, tensor: str, count: int) -> list[str]:
    """Operators on the way up from ``tensor``, along first inputs."""
    found = []
    while tensor in index.producer and len(found) < count:
        found.append(index.producer[tensor].op_type)
        tensor = index.producer[tensor].input[0]
    return found


def conv_relu(tail: str, outputs: str = "float[N,4,6,6] y") -> onnx.ModelProto:
    return nets.network(f"(float[N,3,6,6] x) => ({outputs}) {{ {CONV} {tail} }}", WEIGHTS)


# Activations


def test_low_bit_activation_is_an_integer_clip_between_quantize_and_dequantize():
    model = conv_relu("r = Relu(c) y = Sigmoid(r)")
    index = export(model, plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r")))
    assert upstream(index, index.producer["y"].input[0], 4) == [
        "DequantizeLinear",
        "Clip",
        "QuantizeLinear",
        "Conv",
    ]
    clip = index.producer["r_clipped"]
    assert [index.constant(name).item() for name in clip.input[1:]] == [0, 15]
    assert index.constant(clip.input[1]).dtype == np.uint8
    assert {node.name for node in index.graph.node} >= {"r/QuantizeLinear", "r/Clip", "r/DequantizeLinear"}


def test_eight_bits_need_no_clip():
    model = conv_relu("r = Relu(c) y = Sigmoid(r)")
    index = export(model, plan_of(model, carrier("x"), weight("w"), activation("r", 8, "Relu_r")))
    assert upstream(index, index.producer["y"].input[0], 3) == ["DequantizeLinear", "QuantizeLinear", "Conv"]


def test_relu_with_a_zero_point_becomes_the_lower_bound():
    model = conv_relu("r = Relu(c) y = Sigmoid(r)")
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"))
    tensors = calibrate(model, plan, {"x": nets.images((2, 3, 6, 6))})
    moved = dataclasses.replace(tensors["r"], zero_point=np.array(5, np.int32))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)), {"r": moved})
    assert index.constant(index.producer["r_clipped"].input[1]).item() == 5
    assert not any(node.op_type == "Relu" for node in index.graph.node)


def test_activation_whose_output_is_a_graph_output_stays():
    model = conv_relu("y = Relu(c) z = Sigmoid(y)", "float[N,4,6,6] y, float[N,4,6,6] z")
    plan = plan_of(model, carrier("x"), weight("w"), activation("y", 4, "Relu_y"))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert index.producer["y"].op_type == "Relu"
    assert index.producer["z"].input[0] == "y_dequantized"


def test_an_unread_graph_output_is_not_quantized():
    model = conv_relu("y = Relu(c)")
    index = export(model, plan_of(model, carrier("x"), weight("w"), activation("y", 4, "Relu_y")))
    assert upstream(index, "y", 2) == ["Relu", "Conv"]
    assert "y/QuantizeLinear" not in index.nodes


def test_what_an_absorbed_activation_reads_stays_for_others():
    model = conv_relu("r = Relu(c) s = Sigmoid(c) y = Mul(r, s)")
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert index.producer["s"].input[0] == "c"


def test_an_absorbed_activation_reads_a_quantized_tensor():
    model = conv_relu("r = Relu(c) y = Mul(r, c)")
    plan = plan_of(model, carrier("x"), weight("w"), carrier("c"), activation("r", 4, "Relu_r"))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert index.producer["r_quantized"].input[0] == "c_dequantized"


def test_one_dequantize_serves_all_readers():
    model = conv_relu("r = Relu(c) s = Sigmoid(r) t = Tanh(r) y = Add(s, t)")
    index = export(model, plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r")))
    assert [node.op_type for node in index.consumers("r_clipped")] == ["DequantizeLinear"]


def test_graph_input_keeps_name_type_and_dynamic_axes():
    model = conv_relu("y = Relu(c)")
    index = export(model, plan_of(model, carrier("x"), weight("w")))
    assert list(index.graph.input) == list(model.graph.input)
    assert list(index.graph.output) == list(model.graph.output)
    assert [node.op_type for node in index.consumers("x")] == ["QuantizeLinear"]


def test_a_constant_operand_becomes_integers():
    model = nets.network(
        f"(float[N,3,6,6] x) => (float[N,4,6,6] y) {{ {CONV} a = Add(c, k) y = Sigmoid(a) }}",
        {**WEIGHTS, "k": (1, 4, 1, 1)},
    )
    plan = plan_of(model, carrier("x"), weight("w"), carrier("c"), carrier("k"), activation("a", 8))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert index.constant("k_quantized").dtype == np.uint8
    assert "k" not in index.initializers


# Nodes that only move integers


@pytest.mark.parametrize(
    ("node", "output"),
    [
        ("p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)", "float[N,4,3,3] y"),
        ("p = Flatten(r)", "float[N,144] y"),
        ("p = Transpose <perm=[0,2,3,1]> (r)", "float[N,6,6,4] y"),
        ("p = Identity(r)", "float[N,4,6,6] y"),
        ("p = Concat <axis=1> (r, r)", "float[N,8,6,6] y"),
        ("i = Constant <value_ints=[3, 0]> () p = Gather <axis=1> (r, i)", "float[N,2,6,6] y"),
        ("i = Constant <value_ints=[1, 1, 2, 1]> () p = Tile(r, i)", "float[N,4,12,6] y"),
        ("i = Constant <value_ints=[1]> () p = ReduceMax(r, i)", "float[N,1,6,6] y"),
        ("i = Constant <value_ints=[2, 3]> () p = ReduceMin(r, i)", "float[N,4,1,1] y"),
    ],
)
def test_moves_run_on_integers(node, output):
    model = conv_relu(f"r = Relu(c) {node} y = Sigmoid(p)", output)
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"), p="r")
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert index.producer["p_quantized"].input[0] == "r_clipped"
    assert index.producer["y"].input[0] == "p_dequantized"
    assert "r/DequantizeLinear" not in index.nodes


def test_other_moves_run_in_float_between_two_pairs():
    model = conv_relu("r = Relu(c) p = Dropout(r) m = MaxPool <kernel_shape=[2,2]> (p) y = Sigmoid(m)")
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"), p="r", m="r")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.shape.dim.extend(
        onnx.helper.make_tensor_value_info("y", 1, ["N", 4, 5, 5]).type.tensor_type.shape.dim
    )
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert upstream(index, "m_quantized", 4) == ["MaxPool", "QuantizeLinear", "Dropout", "DequantizeLinear"]


def test_moves_follow_each_other():
    model = conv_relu("r = Relu(c) t = Transpose <perm=[0,2,3,1]> (r) p = Flatten(t) y = Sigmoid(p)", "float[N,144] y")
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"), t="r", p="r")
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert upstream(index, "p_quantized", 3) == ["Flatten", "Transpose", "Clip"]


def test_a_split_gives_each_part_its_integers():
    model = conv_relu("r = Relu(c) p, q = Split <axis=1, num_outputs=2> (r) y = Mul(p, q)", "float[N,2,6,6] y")
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"), p="r", q="r")
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert list(index.producer["y"].input) == ["p_dequantized", "q_dequantized"]


def test_a_split_of_which_one_part_alone_carries_integers_runs_in_float():
    model = conv_relu(
        "e = Exp(c) p, q = Split <axis=1, num_outputs=2> (e) y = Exp(p)", "float[N,2,6,6] y, float[N,2,6,6] q"
    )
    plan = plan_of(model, carrier("x"), weight("w"), carrier("e"), p="e")
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert index.producer["q"].op_type == "Split"
    assert index.producer["q"].input[0] == "e_dequantized"


def padded(value: float | None) -> onnx.ModelProto:
    third = "" if value is None else ", fill"
    model = conv_relu(f"p = Pad(c, pads{third}) y = Sigmoid(p)", "float[N,4,8,8] y")
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "fill": np.array(value or 0, np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in constants.items())
    return model


@pytest.mark.parametrize("value", [None, 0.0])
def test_pad_fills_with_the_zero_point(value):
    model = padded(value)
    plan = plan_of(model, carrier("x"), weight("w"), activation("c", 4), p="c")
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    fill = index.constant(index.producer["p_quantized"].input[2])
    assert fill.dtype == np.uint8
    assert fill.item() == index.constant(index.producer["c_quantized"].input[2]).item()


def test_pad_with_another_value_is_refused():
    model = padded(1.0)
    with pytest.raises(ExportError, match=r"tensor 'p'.*does not pad with 0"):
        export(model, plan_of(model, carrier("x"), weight("w"), activation("c", 4), p="c"))


def test_a_moved_graph_output_keeps_its_name():
    model = conv_relu("r = Relu(c) y = Flatten(r)", "float[N,144] y")
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"), y="r")
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert upstream(index, "y", 2) == ["DequantizeLinear", "Flatten"]


def test_shape_reads_the_integers():
    model = conv_relu("r = Relu(c) s = Shape(r) y = Sigmoid(r) z = Cast <to=1> (s)", "float[N,4,6,6] y, float[4] z")
    index = export(model, plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r")))
    assert index.producer["s"].input[0] == "r_clipped"


def test_moving_integers_of_two_sources_is_refused():
    model = conv_relu("r = Relu(c) p = Concat <axis=1> (r, x) y = Sigmoid(p)", "float[N,7,6,6] y")
    with pytest.raises(ExportError, match=r"tensor 'x'.*integers of 'r', but reads those of 'x'"):
        export(model, plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"), p="r"))


# Weights and biases


@pytest.mark.parametrize(
    ("bits", "opset", "stored", "operators"),
    [
        (2, 25, "UINT2", ["DequantizeLinear", "Sub", "Cast"]),
        (2, 24, "UINT8", ["DequantizeLinear", "Reshape", "Slice", "Reshape", "Gather"]),
        (3, 25, "UINT8", ["DequantizeLinear", "Reshape", "Slice", "Reshape", "Gather"]),
        (4, 21, "UINT4", ["DequantizeLinear", "Sub", "Cast"]),
        (4, 20, "UINT8", ["DequantizeLinear", "Reshape", "Slice", "Reshape", "Gather"]),
        (8, 25, "INT8", ["DequantizeLinear"]),
    ],
)
def test_types_are_used_where_the_opset_has_them(bits, opset, stored, operators, small_weights_are_packed):
    model = nets.network(f"(float[N,3,6,6] x) => (float[N,4,6,6] y) {{ {CONV} y = Relu(c) }}", WEIGHTS, opset=opset)
    plan = plan_of(model, carrier("x"), weight("w", bits, symmetric=bits == 8))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)), packing=Packing.TYPES)
    assert upstream(index, index.producer["c"].input[1], 5) == operators
    assert index.initializers["w_quantized"].data_type == getattr(onnx.TensorProto, stored)
    assert "w" not in index.initializers


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 8))
def test_weights_lie_in_bytes(bits, symmetric, small_weights_are_packed):
    model = nets.network(
        "(float[N,8,6,6] x) => (float[N,4,4,4] y) { c = Conv(x, w, b) y = Relu(c) }", {"w": (4, 8, 3, 3), "b": (4,)}
    )
    plan = plan_of(model, carrier("x"), weight("w", bits, symmetric=symmetric))
    index = check_against_simulation(model, plan, nets.images((2, 8, 6, 6)))
    assert upstream(index, index.producer["c"].input[1], 3) == ["DequantizeLinear", "Reshape", "Gather"]
    planes = [tensor for name, tensor in index.initializers.items() if name.startswith("w_quantized")]
    assert {tensor.data_type for tensor in planes} == {onnx.TensorProto.UINT8}
    assert sum(len(tensor.raw_data) for tensor in planes) == 4 * 72 * bits // 8
    assert "w" not in index.initializers


def test_a_small_weight_is_int8():
    model = conv_relu("y = Relu(c)")
    index = check_against_simulation(model, plan_of(model, carrier("x"), weight("w", 2)), nets.images((2, 3, 6, 6)))
    assert upstream(index, index.producer["c"].input[1], 3) == ["DequantizeLinear"]
    assert index.initializers["w_quantized"].data_type == onnx.TensorProto.INT8


@pytest.mark.parametrize("packing", Packing)
def test_zero_points_that_are_equal_need_no_offset(packing, small_weights_are_packed):
    model = nets.network(
        "(float[N,8,6,6] x) => (float[N,4,4,4] y) { c = Conv(x, w, b) y = Relu(c) }", {"w": (4, 8, 3, 3), "b": (4,)}
    )
    plan = plan_of(model, carrier("x"), weight("w"))
    known = calibrate(model, plan, {"x": nets.images((2, 8, 6, 6))})["w"]
    unsigned = dataclasses.replace(known, zero_point=np.zeros_like(known.zero_point))
    index = check_against_simulation(model, plan, nets.images((2, 8, 6, 6)), {"w": unsigned}, packing=packing)
    assert not {"Sub", "Split"} & {node.op_type for node in index.graph.node if "int4" not in node.output[0]}
    assert not any(node.op_type == "Add" for node in index.graph.node)


def test_layers_that_share_a_weight_share_its_integers_alone(small_weights_are_packed):
    model = nets.network(
        """(float[N,4,6,6] x) => (float[N,4,6,6] y) {
            c = Conv <pads=[1,1,1,1]> (x, w, b)
            r = Relu(c)
            y = Conv <pads=[1,1,1,1]> (r, w, b)
        }""",
        {"w": (4, 4, 3, 3), "b": (4,)},
    )
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"))
    index = check_against_simulation(model, plan, nets.images((2, 4, 6, 6)))
    first, second = index.producer["c"], index.producer["y"]
    weights, biases = ([index.producer[node.input[place]] for node in (first, second)] for place in (1, 2))
    assert weights[0].input == weights[1].input
    assert weights[0].output != weights[1].output
    assert biases[0].output != biases[1].output


def test_a_weight_stays_float_for_a_reader_that_is_no_layer():
    model = nets.network(
        f"(float[N,3,6,6] x) => (float[N,4,6,6] y, float[4,3,3,3] z) {{ {CONV} y = Relu(c) z = Abs(w) }}",
        WEIGHTS,
    )
    index = check_against_simulation(model, plan_of(model, carrier("x"), weight("w")), nets.images((2, 3, 6, 6)))
    assert index.producer["z"].input[0] == "w"


def test_bias_is_int32_with_the_product_of_the_scales():
    model = conv_relu("y = Relu(c)")
    index = export(model, plan_of(model, carrier("x"), weight("w")))
    bias = index.producer[index.producer["c"].input[2]]
    integers, scale, zero_point = (index.constant(name) for name in bias.input)
    assert integers.dtype == zero_point.dtype == np.int32
    assert zero_point.shape == scale.shape
    assert not zero_point.any()
    assert (scale == index.constant("x_scale") * index.constant("w_scale")).all()


@pytest.mark.parametrize(
    ("factor", "stored"), [(0.1, "INT8"), (1, "INT16"), (1e6, "INT32")], ids=["int8", "int16", "int32"]
)
def test_a_wide_layer_stores_one_number_a_channel_in_few_bits(factor, stored):
    channels = 256
    model = nets.network(
        "(float[N,3,6,6] x) => (float[N,256,4,4] y) { c = Conv(x, w, b) y = Relu(c) }",
        {"w": (channels, 3, 3, 3), "b": (channels,)},
        opset=25,
    )
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * np.float32(factor), "b"))
    plan = plan_of(model, carrier("x"), weight("w", 2))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)), packing=Packing.TYPES)
    dequantize = index.producer["b_dequantized"]
    assert upstream(index, dequantize.input[0], 1) == ([] if stored == "INT32" else ["Cast"])
    assert index.initializers["b_quantized"].data_type == getattr(onnx.TensorProto, stored)
    assert list(index.producer[dequantize.input[1]].input) == ["x_scale", "w_scale"]
    assert index.initializers["w_zero_point"].data_type == onnx.TensorProto.UINT2
    assert index.producer["w_dequantized"].input[2] == "int8_zero_256"
    assert index.producer["int8_zero_256"].op_type == "ConstantOfShape"


def test_a_bias_whose_scale_is_no_product_in_the_graph_states_it():
    model = nets.network(
        "(float[N,4,5,5] x) => (float[N,64,6,6] y) { y = ConvTranspose <kernel_shape=[2,2], group=2> (x, w, b) }",
        {"w": (4, 32, 2, 2), "b": (64,)},
    )
    index = check_against_simulation(
        model, plan_of(model, carrier("x"), weight("w", 4, axis=1)), nets.images((2, 4, 5, 5))
    )
    weight_scale = np.tile(index.constant("w_scale"), 2)  # one for each channel of a group
    assert (index.constant("b_scale") == index.constant("x_scale") * weight_scale).all()


def test_bias_stays_float_where_the_input_is_float():
    model = conv_relu("y = Relu(c)")
    index = check_against_simulation(model, plan_of(model, weight("w")), nets.images((2, 3, 6, 6)))
    assert index.producer["c"].input[2] == "b"


def test_a_layer_that_is_not_planned_stays_float():
    model = conv_relu("y = Relu(c)")
    index = export(model, plan_of(model, carrier("x")))
    assert list(index.producer["c"].input) == ["x_dequantized", "w", "b"]


def test_a_bias_that_dwarfs_its_weights_survives():
    model = conv_relu("y = Relu(c)")
    values = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    values[1] *= 1e-12
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    plan = plan_of(model, carrier("x"), weight("w"))
    known = calibrate(model, plan, {"x": nets.images((2, 3, 6, 6))})["w"]
    scale = known.scale.copy()
    scale[1] = 1e-14
    check_against_simulation(model, plan, nets.images((2, 3, 6, 6)), {"w": dataclasses.replace(known, scale=scale)})


@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,), (2, 5)])
def test_gemm_factors_and_bias_shapes(bias, small_weights_are_packed):
    model = nets.network(
        "(float[2,6] x) => (float[2,5] y) { y = Gemm <alpha=0.5, beta=2.0> (x, w, b) }",
        {"w": (6, 5), "b": bias},
    )
    plan = plan_of(model, carrier("x"), weight("w", 7, axis=1, symmetric=True))
    x = nets.images((2, 6))
    tensors = calibrate(model, plan, {"x": x})
    exported = export_model(model, plan, tensors, metadata={})
    node = exported.graph.node[-1]
    assert attribute(node, "alpha", 1.0) == 1.0
    assert attribute(node, "beta", 1.0) == (2.0 if bias == (2, 5) else 1.0)
    np.testing.assert_allclose(observe(exported, ["y"], {"x": x})["y"], observe(model, ["y"], {"x": x})["y"], atol=0.05)


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution(group, small_weights_are_packed):
    model = nets.network(
        f"""(float[N,4,5,5] x) => (float[N,6,10,10] y) {{
            y = ConvTranspose <kernel_shape=[2,2], strides=[2,2], group={group}> (x, w, b)
        }}""",
        {"w": (4, 6 // group, 2, 2), "b": (6,)},
    )
    plan = plan_of(model, carrier("x"), weight("w", 4, axis=1))
    index = check_against_simulation(model, plan, nets.images((2, 4, 5, 5)))
    assert attribute(index.producer["w_dequantized"], "axis") == 1
    assert upstream(index, "w_dequantized", 4) == ["DequantizeLinear", "Transpose", "Reshape", "Gather"]
    assert index.constant("w_quantized").shape[0] == 6 // group


def test_matmul_runs_in_integers(small_weights_are_packed):
    model = nets.network("(float[N,6] x) => (float[N,5] y) { c = MatMul(x, w) y = Sigmoid(c) }", {"w": (6, 5)})
    plan = plan_of(model, carrier("x"), weight("w", 4, axis=1), activation("c", 4))
    check_against_simulation(model, plan, nets.images((3, 6)))


# The graph as a whole


def test_names_avoid_those_of_the_user(small_weights_are_packed):
    model = conv_relu("r_quantized = Relu(c) r = Tanh(r_quantized) y = Sigmoid(r)")
    model.graph.node[0].name = "r/QuantizeLinear"
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4))
    index = check_against_simulation(model, plan, nets.images((2, 3, 6, 6)))
    assert index.producer["r_quantized"].op_type == "Relu"
    assert index.producer["r_quantized_1"].name == "r/QuantizeLinear_1"
    names = [node.name for node in index.graph.node if node.name]
    assert len(set(names)) == len(names)


def test_a_branch_that_captures_a_tensor_reads_it_in_float():
    model = conv_relu("r = Relu(c) y = Sigmoid(r)")
    branch = onnx.parser.parse_graph("g () => (float[N,4,6,6] o) { o = Exp(r) }")
    model.graph.node.append(
        onnx.helper.make_node("If", ["flag"], ["z"], name="if", then_branch=branch, else_branch=branch)
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "flag"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 4, 6, 6]))
    index = export(model, plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r")))
    assert index.producer["r"].op_type == "Relu"
    onnxruntime.InferenceSession(index.model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_nothing_unused_is_left(small_weights_are_packed):
    model = nets.residual()
    plan = make_plan(model, PlanOptions.of(BitWidths(4, 4)))
    index = export(model, plan, shape=(2, 4, 12, 12))
    used = {name for node in index.graph.node for name in node.input} | set(index.outputs)
    assert set(index.initializers) <= used
    assert all(set(node.output) & used for node in index.graph.node)
    assert not index.graph.value_info


# Errors


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("r", {"scale": np.float32(0)}, "tensor 'r': scale is 0.0; expected a positive number"),
        ("r", {"scale": np.float32("nan")}, "tensor 'r': scale is nan"),
        ("r", {"zero_point": np.int32(300)}, "tensor 'r': zero_point is 300"),
        ("r", {"scale": np.ones(4, np.float32)}, "tensor 'r': scale has shape"),
        ("w", {"integers": None}, "weight 'w': its integers are missing"),
        ("w", {"integers": np.zeros((4, 3), np.int16)}, "weight 'w': its integers are of shape"),
        ("w", {"integers": np.full((4, 3, 3, 3), 16, np.int16)}, "weight 'w': its integers span"),
        ("w", {"scale": np.ones(3, np.float32)}, "weight 'w': scale has shape"),
        ("w", {"scale": np.zeros(4, np.float32)}, "weight 'w': its scale is 0.0"),
        ("w", {"zero_point": np.full(4, 200, np.int32)}, "weight 'w': integers minus zero_point leave INT8"),
    ],
)
def test_parameters_that_cannot_be_written(tensor, change, message):
    model = conv_relu("r = Relu(c) y = Sigmoid(r)")
    plan = plan_of(model, carrier("x"), weight("w"), activation("r", 4, "Relu_r"))
    known = calibrate(model, plan, {"x": nets.images((2, 3, 6, 6))})[tensor]
    with pytest.raises(ExportError, match=message):
        export(model, plan, changed={tensor: dataclasses.replace(known, **change)})


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([carrier("nowhere")], "tensor 'nowhere': planned but not in the model"),
        ([activation("r", 4, "Other")], "tensor 'r': is to absorb node 'Other'"),
        ([weight("c")], "weight 'c': not an initializer"),
    ],
)
def test_plans_of_another_model(points, message):
    model = conv_relu("r = Relu(c) y = Sigmoid(r)")
    plan = plan_of(model, *points)
    good = plan_of(model, carrier("x"), weight("w"), activation("r"))
    tensors = calibrate(model, good, {"x": nets.images((2, 3, 6, 6))})
    tensors.update({p.tensor: dataclasses.replace(tensors["x"], point=p) for p in points})
    with pytest.raises(ExportError, match=message):
        export_model(model, plan, tensors, metadata={})


def test_a_point_without_parameters():
    model = conv_relu("y = Relu(c)")
    with pytest.raises(ExportError, match="tensor 'x': planned but without scale"):
        export_model(model, plan_of(model, carrier("x")), {}, metadata={})
