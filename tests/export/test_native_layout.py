"""Layout rules of `native`, on graphs that are small enough to read."""

import numpy as np
import onnx
import pytest

from pdq_export.export import export_model, native, ort, required_opset
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.validate import Session

from . import toy_networks as nets
from .test_layouts_agree import export
from .toy_quantizer import calibrate


def types(index: GraphIndex) -> set[str]:
    """Types of the zero points of QuantizeLinear and DequantizeLinear."""
    pairs = [n for n in index.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear") and len(n.input) > 2]
    return {onnx.TensorProto.DataType.Name(index.initializers[node.input[2]].data_type) for node in pairs}


@pytest.mark.parametrize(
    ("bits", "opset", "expected"),
    [
        ("2/2", 25, {"UINT2", "UINT8", "INT8", "INT32"}),
        ("4/4", 21, {"UINT4", "UINT8", "INT8", "INT32"}),
        ("3/3", 21, {"UINT4", "UINT8", "INT8", "INT32"}),
        ("4/2", 25, {"UINT4", "UINT2", "UINT8", "INT8", "INT32"}),
        ("6/6", 13, {"UINT8", "INT8", "INT32"}),
    ],
)
def test_containers(bits: str, opset: int, expected: set[str]) -> None:
    model = export("residual", bits, "native")
    assert model.opset_import[0].version == opset
    assert types(GraphIndex(model)) == expected


def test_weights_are_integers_with_zero_points_per_channel() -> None:
    index = GraphIndex(export("residual", "4/4", "native"))
    dequantize = index.producer[index.nodes["Conv_c1"].input[1]]
    integers, zero_point = (index.initializers[dequantize.input[i]] for i in (0, 2))
    assert integers.data_type == zero_point.data_type == onnx.TensorProto.UINT4
    assert list(zero_point.dims) == [8]
    assert onnx.numpy_helper.to_array(zero_point).astype(int).any()


def test_moved_tensors_have_pairs_on_both_sides() -> None:
    index = GraphIndex(export("chain", "4/4", "native"))
    pool = next(node for node in index.graph.node if node.op_type == "MaxPool")
    assert index.producer[pool.input[0]].op_type == "DequantizeLinear"
    assert [node.op_type for node in index.consumers(pool.output[0])] == ["QuantizeLinear"]


@pytest.mark.parametrize(("bits", "before", "after"), [("3/3", {"Max", "Min"}, set()), ("6/6", set(), {"Clip"})])
def test_bits_that_do_not_fill_their_type_are_limited(bits: str, before: set[str], after: set[str]) -> None:
    index = GraphIndex(export("leaky", bits, "native"))
    operators = {node.op_type for node in index.graph.node}
    assert operators & {"Max", "Min", "Clip"} in (before, after, {"Min"})
    for node in index.graph.node:
        if node.op_type in ("Max", "Min"):
            assert index.constant(node.input[1]).dtype == np.float32
        if node.op_type == "Clip":
            assert index.constant(node.input[1]).dtype == np.uint8


def test_a_clip_that_stays_before_four_bits_becomes_max_and_min() -> None:
    text = "c = Conv <pads=[1,1,1,1]> (x, w, b) r = Clip(c, low, high) z = Sigmoid(r) y = Conv(z, w2, b)"
    model = nets.network(
        f"(float[N,3,12,12] x) => (float[N,8,10,10] y) {{ {text} }}", {"w": (8, 3, 3, 3), "b": (8,), "w2": (8, 8, 3, 3)}
    )
    for name, value in (("low", 0.1), ("high", 0.7)):
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
    plan, x = make_plan(model, PlanOptions.of("4/4")), nets.images((2, 3, 12, 12))
    tensors = calibrate(model, plan, {"x": x})
    files = (export_model(model, plan, tensors, layout=layout, metadata={}) for layout in (ort.LAYOUT, native.LAYOUT))
    outputs = [Session(file.SerializeToString(), optimize=False).run(x)[0] for file in files]
    assert (outputs[0] == outputs[1]).all()


def test_a_moved_graph_output_keeps_its_name_and_its_readers() -> None:
    text = "c = Conv (x, w, b) y = MaxPool <kernel_shape=[2,2]> (c) e = Conv (y, v, b) z = Conv (e, v, b)"
    weights = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 8, 3, 3)}
    model = nets.network(f"(float[N,3,12,12] x) => (float[N,8,9,9] y, float[N,8,5,5] z) {{ {text} }}", weights)
    plan, x = make_plan(model, PlanOptions.of("4/4")), nets.images((2, 3, 12, 12))
    tensors = calibrate(model, plan, {"x": x})
    files = [export_model(model, plan, tensors, layout=layout, metadata={}) for layout in (ort.LAYOUT, native.LAYOUT)]
    assert GraphIndex(files[1]).producer["y"].op_type == "MaxPool"
    outputs = [Session(file.SerializeToString(), optimize=False).run(x) for file in files]
    assert all((a == b).all() for a, b in zip(*outputs, strict=True))


def test_required_opset_counts_activations() -> None:
    plan = make_plan(nets.chain(), PlanOptions.of("8/2"))
    assert (required_opset(plan, native.LAYOUT), required_opset(plan, ort.LAYOUT)) == (25, 13)
    assert required_opset(plan, native.LAYOUT, 21) == 21
