"""Layout `tensorrt`: the written graphs keep to TensorRT's rules, and the rules find what breaks them."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from pdq_export.errors import ExportError, OptionError
from pdq_export.export import export_model, tensorrt
from pdq_export.export.tensorrt_rules import tensorrt_problems
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.passes import tensorrt as pairs
from pdq_export.plan.planned import Planned
from pdq_export.targets import find_target

from . import toy_networks as nets
from .test_ort_runs import run
from .toy_quantizer import calibrate, simulate

NETS: dict[str, tuple[Callable[[int], onnx.ModelProto], tuple[int, ...]]] = {
    "chain": (nets.chain, (2, 3, 12, 12)),
    "residual": (nets.residual, (2, 4, 12, 12)),
}


def export(name: str, *, ruled: bool = True) -> onnx.ModelProto:
    make, shape = NETS[name]
    model = make(13)
    options = PlanOptions.of("8/8")
    plan = find_target("tensorrt").plan(model, options).plan if ruled else make_plan(model, options)
    tensors = calibrate(model, plan, {"x": nets.images(shape)})
    exported = find_target("tensorrt").export(model, plan, tensors, metadata={})
    simulated = simulate(model, plan, tensors, {"x": nets.images(shape)})["logits"]
    np.testing.assert_allclose(run(exported, nets.images(shape), optimize=False), simulated, rtol=0, atol=1e-5)
    return exported


@pytest.mark.parametrize("name", NETS)
def test_the_rules_are_kept(name: str) -> None:
    model = export(name)
    assert tensorrt_problems(model.graph) == []
    assert model.opset_import[0].version == 13
    assert "pdq_export.source" not in {entry.key for entry in model.metadata_props}


def test_pairs_lie_before_layers_and_on_the_residual_branch() -> None:
    index = GraphIndex(export("residual"))
    for node in index.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [index.producer[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert index.constant(node.input[2]).dtype == np.float32
        if node.op_type == "Add":
            operators = [index.producer[name].op_type for name in node.input]
            assert operators in (["Conv", "DequantizeLinear"], ["DequantizeLinear", "Conv"])
    assert {node.op_type for node in index.graph.node} >= {"Relu", "Clip"}  # left to TensorRT's own fusion


def test_weights_have_their_scales_along_the_output_channels() -> None:
    index = GraphIndex(export("residual"))
    dequantize = index.producer[index.nodes["Conv_c1"].input[1]]
    assert [index.constant(name).shape for name in dequantize.input] == [(8, 8, 3, 3), (8,), (8,)]
    assert index.constant(dequantize.input[0]).dtype == np.int8


@pytest.mark.parametrize("bits", ["4/8", "8/4", "7/7"])
def test_below_8_bits_is_refused_before_calibration(bits: str) -> None:
    message = r"--target tensorrt: tensor '\w+' is to have \d bits; expected 8 throughout, as TensorRT has INT8"
    with pytest.raises(OptionError, match=message):
        find_target("tensorrt").plan(nets.residual(13), PlanOptions.of(bits))


def test_a_plan_of_fewer_bits_is_refused_by_the_layout_too() -> None:
    model, x, options = nets.residual(13), nets.images((2, 4, 12, 12)), PlanOptions.of("8/4", weights="symmetric")
    plan = pairs.run(Planned.of(model, make_plan(model, options, integer_bias=False), options)).plan
    with pytest.raises(ExportError, match="a Clip lies between the pair; expected 8 bits"):
        export_model(model, plan, calibrate(model, plan, {"x": x}), layout=tensorrt.LAYOUT, metadata={})


@pytest.mark.wide_weights
def test_a_plan_for_another_target_is_refused() -> None:
    with pytest.raises(ExportError, match="expected symmetric with zero_point 0, INT8"):
        export("residual", ruled=False)


def break_zero_point(index: GraphIndex) -> None:
    index.initializers["int8_0"].raw_data = b"\1"


def break_type(index: GraphIndex) -> None:
    index.initializers["int8_0"].data_type = onnx.TensorProto.UINT8


def break_scale(index: GraphIndex) -> None:
    index.initializers["r1_scale"].CopyFrom(onnx.numpy_helper.from_array(np.array(-1, np.float32), "r1_scale"))


def break_axis(index: GraphIndex) -> None:
    index.producer[index.nodes["Conv_c1"].input[1]].attribute[0].i = 1


def break_input(index: GraphIndex) -> None:
    node = index.nodes["Conv_c1"]
    node.input[0] = index.producer[index.producer[node.input[0]].input[0]].input[0]


def break_residual(index: GraphIndex) -> None:
    conv, add = index.nodes["Conv_c2"], index.nodes["Add_a0"]
    for op_type, source, output in (("QuantizeLinear", conv.output[0], "q"), ("DequantizeLinear", "q", "dq")):
        index.graph.node.append(onnx.helper.make_node(op_type, [source, "r1_scale", "int8_0"], [output], name=op_type))
    for position, name in enumerate(add.input):
        if name != conv.output[0]:
            quantize = index.producer[index.producer[name].input[0]]
            quantize.input[0] = index.nodes["Conv_c1"].output[0]
        else:
            add.input[position] = "dq"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_zero_point, "its zero_point is not INT8 and 0"),
        (break_type, "its zero_point is not INT8 and 0"),
        (break_scale, "its scale is not a positive constant"),
        (break_axis, "its weight has scales along axis 1; expected 0"),
        (break_input, "its weight is quantized and its input is not"),
        (break_residual, "both operands are layers behind pairs"),
    ],
)
def test_broken_rules_are_found(change: Callable[[GraphIndex], None], message: str) -> None:
    index = GraphIndex(export("residual"))
    change(index)
    assert any(message in problem for problem in tensorrt_problems(index.graph))
