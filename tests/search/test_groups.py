"""What shares a width is one point; operands of an Add or a Concat are free of each other."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pdq_export.commands.estimates import estimate_tensors
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import PreparedModel, prepare
from pdq_export.plan import PlanOptions
from pdq_export.search.groups import find_groups
from pdq_export.spec import Plan, Role
from pdq_export.targets import find_target
from tests.calibrate.networks import residual

JOINS = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,4,8,8] image) => (float[N,K] y) {
    a = Conv <pads = [1, 1, 1, 1]> (image, w1)
    ra = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (ra, w2)
    rb = Relu(b)
    c = Conv <pads = [1, 1, 1, 1]> (rb, w2)
    s = Add(ra, c)
    rs = Relu(s)
    j = Concat <axis = 1> (rs, rb)
    d = Conv (j, w3)
    rd = Relu(d)
    p = GlobalAveragePool(rd)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w4)
}"""
SHAPES = {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (6, 8, 1, 1), "w4": (5, 6)}


@pytest.fixture(scope="module")
def joins() -> PreparedModel:
    model = onnx.parser.parse_model(JOINS)
    generator = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        value = generator.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return prepare(model)


def planned(prepared: PreparedModel, **bits: int) -> Plan:
    options = PlanOptions.of("4/4", tensor_bits=bits, weights="asymmetric")
    return find_target("ort").plan(prepared.index, options).plan


def test_every_weight_and_learned_activation_is_in_one_group(joins: PreparedModel) -> None:
    plan = planned(joins)
    groups = find_groups(joins.index, plan)
    named = list(itertools.chain.from_iterable(group.tensors for group in groups))
    assert named == [name for name, point in plan.points.items() if point.role is not Role.CARRIER]
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        assert {plan.points[name].role for name in group.tensors} == {group.role}
        assert group.block in {block.name for block in plan.blocks}


def test_a_shared_weight_is_one_group_of_all_its_layers(joins: PreparedModel) -> None:
    plan = planned(joins)
    (group,) = (group for group in find_groups(joins.index, plan) if group.tensors == ("w2",))
    assert group.layers == tuple(layer.node for layer in plan.layers if layer.weight == "w2")
    assert len(group.layers) == 2


def test_a_layer_that_leads_to_an_add_ends_in_the_sum(joins: PreparedModel) -> None:
    plan = planned(joins)
    groups = {group.name: group for group in find_groups(joins.index, plan)}
    third = next(layer.node for layer in plan.layers if layer.output == "c")
    assert third in groups["rs"].layers
    assert not set(groups["ra"].layers) & set(groups["rs"].layers)


def test_the_block_is_where_calibration_settles_the_tensor() -> None:
    example = residual()
    for group in find_groups(example.prepared.index, example.plan):
        (block,) = (block for block in example.plan.blocks if block.name == group.block)
        written = {out for node in block.nodes for out in example.prepared.index.nodes[node].output}
        assert group.name in written or group.name in {layer.weight for layer in block.layers}


@pytest.mark.parametrize("bits", [{"ra": 2, "rb": 6, "rs": 3}, {"ra": 7, "rb": 2, "rs": 5}])
def test_operands_of_different_widths_run_as_integers(
    joins: PreparedModel, bits: dict[str, int], tmp_path: Path
) -> None:
    """The claim that groups rest on: onnxruntime adds and joins tensors of any widths with integer kernels."""
    plan = planned(joins, **bits)
    assert {name: plan.points[name].bits for name in bits} == bits
    file = find_target("ort").export(joins.model, plan, estimate_tensors(joins, plan), metadata={})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kernels = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert {"QLinearAdd", "QLinearConcat", "QLinearConv"} <= kernels
    assert not {"Add", "Concat", "Conv"} & kernels
    generator = np.random.default_rng(1)
    (y,) = session.run(None, {"image": generator.normal(size=(2, 4, 8, 8)).astype(np.float32)})
    assert np.isfinite(y).all()


def test_the_index_is_all_that_is_needed(joins: PreparedModel) -> None:
    plan = planned(joins)
    assert find_groups(GraphIndex(joins.model), plan) == find_groups(joins.index, plan)
