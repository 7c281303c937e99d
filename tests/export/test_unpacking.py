"""Graphs that unpack weights, run by onnxruntime node by node and folded, and read back."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdq_export.export import packing, unpacking
from pdq_export.export.constants import LayerConstants, Weight, along_axis
from pdq_export.export.layers import LayerWriter, unpacked_weight
from pdq_export.export.layouts import FORM
from pdq_export.export.packing import WIDTHS
from pdq_export.export.readers import read_weight
from pdq_export.export.unpacking import Unpacking
from pdq_export.export.writer import GraphWriter
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import Layer, Point, Role


def weight_of(name, shape, axis, bits, *, symmetric=False, equal=False, seed=0) -> Weight:
    """Random integers and zero points of all values that the bits have; ``equal``: one zero point throughout."""
    rng = np.random.default_rng(seed)
    point = Point(tensor=name, role=Role.WEIGHT, bits=bits, axis=axis, symmetric=symmetric)
    channels = () if axis is None else (shape[axis],)
    zero_point = np.zeros(channels) if symmetric else rng.integers(0, 2**bits, () if equal else channels)
    return Weight(
        point=point,
        integers=rng.integers(point.qmin, point.qmax + 1, shape).astype(np.int16),
        zero_point=np.broadcast_to(zero_point, channels).astype(np.int16),
        scale=rng.uniform(0.5, 1.5, channels).astype(np.float32),
    )


def written(weights: list[Weight], opset: int = 13) -> tuple[onnx.ModelProto, list[str]]:
    """A model whose outputs are the dequantized weights, and the operators of the chains."""
    outputs = [
        onnx.helper.make_tensor_value_info(f"out{n}", onnx.TensorProto.FLOAT, weight.integers.shape)
        for n, weight in enumerate(weights)
    ]
    out = GraphWriter(onnx.GraphProto(name="g", output=outputs))
    unpack = Unpacking(out, weights)
    layers = LayerWriter(
        out,
        lambda out, weight: unpacked_weight(out, weight, unpack.write(weight.key), sole=False),
        packs=True,
        form=FORM,
    )
    for number, weight in enumerate(weights):
        names = layers.constants(LayerConstants(weight=weight, bias=None), None)
        out.node_to("Identity", [names[weight.point.tensor]], f"out{number}", name=f"layer{number}")
    graph = out.finish()
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    return model, [node.op_type for node in graph.node]


def check(weights: list[Weight]) -> list[str]:
    model, operators = written(weights)
    expected = [w.centered * along_axis(w.scale, w.point.axis, w.integers.ndim) for w in weights]
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for found, wanted in zip(session.run(None, {}), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    index = GraphIndex(model)
    for number, weight in enumerate(weights):
        layer = Layer(node=f"layer{number}", op_type="Conv", input="x", weight="w", bias=None, output="y")
        index.nodes[layer.node].input[:] = ["x", index.nodes[layer.node].input[0]]
        back = read_weight(index, layer, weight.point, shape=weight.integers.shape, zero_point=weight.zero_point)
        for field in ("integers", "zero_point", "scale"):
            found, wanted = getattr(back, field), getattr(weight, field)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
    return operators


SHAPES = {
    "conv": ((8, 6, 3, 3), 0),
    "rows of nine": ((8, 1, 3, 3), 0),
    "pointwise": ((16, 8, 1, 1), 0),
    "conv1d": ((5, 7, 3), 0),
    "gemm": ((10, 33), 0),
    "matmul": ((33, 10), 1),
    "transposed": ((6, 5, 2, 2), 1),
    "last axis": ((3, 3, 4, 8), 3),
    "tensor": ((7, 5, 3, 3), None),
}


@pytest.mark.parametrize("kind", ["asymmetric", "symmetric", "equal"])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_width_shape_and_axis(shape, bits, kind, monkeypatch):
    monkeypatch.setattr(unpacking, "choose_widths", lambda weights: [bits])
    check([weight_of("w", *SHAPES[shape], bits, symmetric=kind == "symmetric", equal=kind == "equal")])


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_several_weights_share_the_tables_of_their_widths(data, seed):
    weights, stored = [], []
    for number in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
        axis = data.draw(st.sampled_from([None, *range(len(shape))]))
        bits = data.draw(st.integers(2, 7))
        stored.append(data.draw(st.integers(bits, 7)))
        symmetric, equal = data.draw(st.booleans()), data.draw(st.booleans())
        weights.append(weight_of(f"w{number}", shape, axis, bits, symmetric=symmetric, equal=equal, seed=seed + number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "choose_widths", lambda weights: stored)
        operators = check(weights)
    assert operators.count("Split") <= len(set(stored))


@pytest.mark.parametrize(
    ("bits", "kind", "operators"),
    [
        (4, "symmetric", ["Cast", "Gather", "Reshape"]),
        (2, "asymmetric", ["Cast", "Add", "Gather", "Reshape"]),
        (3, "asymmetric", ["Cast", "Cast", "Add", "Gather", "Add", "Gather", "Reshape"]),
        (6, "symmetric", ["Cast", "Cast", "Gather", "Add", "Gather", "Reshape"]),
    ],
)
def test_nodes_of_a_weight(bits, kind, operators):
    weights = [weight_of(f"w{n}", (32, 32, 3, 3), 0, bits, symmetric=kind == "symmetric") for n in range(2)]
    _, found = written(weights)
    assert found[-len(operators) - 2 :] == [*operators, "DequantizeLinear", "Identity"]
    packable = unpacking.Packable.of((32, 32, 3, 3), 0, bits, weights[0].zero_point)
    assert packing.unpacking_nodes(packable, bits) == len(operators)


@pytest.mark.parametrize("kind", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_loading_takes_is_what_the_nodes_compute(shape, bits, kind, monkeypatch):
    monkeypatch.setattr(unpacking, "choose_widths", lambda weights: [bits])
    weight = weight_of("w", *SHAPES[shape], bits, symmetric=kind == "symmetric")
    model, _ = written([weight])
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    sizes = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize
        * math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred
    }
    own = [name for name in sizes if name.startswith("w_") and name not in ("w_z", "w_dequantized")]
    packable = packing.Packable.of(weight.integers.shape, weight.point.axis, bits, weight.zero_point)
    assert packing.loading_bytes(packable, bits) == sum(sizes[name] for name in own)


def test_all_of_it_folds_into_the_weight(tmp_path):
    model, _ = written([weight_of("w", (64, 16, 3, 3), 0, 3)])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    folded = onnx.load(tmp_path / "folded.onnx").graph
    assert {node.op_type for node in folded.node} <= {"DequantizeLinear", "Identity"}
