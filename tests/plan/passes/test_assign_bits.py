"""Bits of single tensors: the plan is the one that planning with these bits makes; what cannot have them is refused."""

import numpy as np
import onnx
import pytest

from pdq_export.commands.dry_run import dry_run
from pdq_export.errors import OptionError
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions
from pdq_export.plan.passes.assign_bits import assign_bits
from pdq_export.plan.planned import Planned
from pdq_export.spec import Plan, Role
from pdq_export.targets import find_target
from pdq_export.validate import Session
from pdq_export.work import prepare_and_plan

from ...export import toy_networks as nets
from ...export.toy_quantizer import calibrate, simulate
from ...onnx_text import fill, name_nodes, parse

PAD = "<pads = [1, 1, 1, 1]>"
SHAPES = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3), "w4": (5, 4), "last": (5, 4, 1, 1)}
RESIDUAL = f"""c1 = Conv {PAD} (image, w1) a1 = Relu(c1) m = MaxPool <kernel_shape = [2, 2]> (a1)
    c2 = Conv {PAD} (m, w2) a2 = Relu(c2) c3 = Conv {PAD} (a2, w3) s = Add(c3, m) z = Relu(s)
    p = GlobalAveragePool(z) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""
SHARED = f"""c1 = Conv {PAD} (image, w1) a1 = Relu(c1) c2 = Conv {PAD} (a1, w2) a2 = Relu(c2) c3 = Conv {PAD} (a2, w2)
    z = Relu(c3) p = GlobalAveragePool(z) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""
# What the next layer reads, an output is computed from as well.
TWO_SCALES = f"""c1 = Conv {PAD} (image, w1) a1 = Relu(c1) c2 = Conv {PAD} (a1, w2) a2 = Relu(c2) e = Sigmoid(a2)
    c3 = Conv {PAD} (a2, w3) z = Relu(c3) y = Conv (z, last)"""
BODIES = {
    "residual": (RESIDUAL, "float[N,K] y"),
    "shared": (SHARED, "float[N,K] y"),
    "two scales": (TWO_SCALES, "float[N,K,H,W] e, float[N,K,H,W] y"),
}


def model_of(name: str) -> onnx.ModelProto:
    body, outputs = BODIES[name]
    return name_nodes(fill(parse(body, outputs=outputs), {k: v for k, v in SHAPES.items() if k in body}))


def planned(name: str, bits: str, **options: object) -> Planned:
    chosen = PlanOptions.of(bits, **options)  # type: ignore[arg-type]
    return find_target("ort").plan(prepare(model_of(name)).model, chosen)


def learned(plan: Plan) -> dict[str, int]:
    return {name: point.bits for name, point in plan.points.items() if point.role is not Role.CARRIER}


@pytest.mark.parametrize("weights", [None, "symmetric"])
@pytest.mark.parametrize("bits", ["4/3", "2/2", "8/4", "3/8"])
@pytest.mark.parametrize("name", BODIES)
def test_it_is_what_planning_with_these_bits_makes(name: str, bits: str, weights: str | None) -> None:
    wanted = planned(name, bits, weights=weights).plan
    found = assign_bits(planned(name, "8/8", weights=weights), learned(wanted)).plan
    assert found.points == wanted.points
    assert list(found.points) == list(wanted.points)
    assert (found.passthrough, found.unquantized) == (wanted.passthrough, wanted.unquantized)
    assert (found.blocks, found.ramps) == (wanted.blocks, wanted.ramps)


def test_what_is_not_named_keeps_its_bits() -> None:
    before = planned("residual", "4/4")
    after = assign_bits(before, {"w2": 8, "a2": 3}).plan.points
    assert {name for name, point in after.items() if point != before.plan.points[name]} == {"w2", "a2"}
    assert (after["w2"].bits, after["w2"].symmetric) == (8, True)
    assert (after["a2"].bits, after["a2"].absorbed) == (3, "a2")
    assert before.plan.points["w2"].bits == 4


def test_a_shared_weight_has_one_width_for_all_its_layers() -> None:
    plan = assign_bits(planned("shared", "8/8"), {"w2": 3}).plan
    assert [plan.points[layer.weight].bits for layer in plan.layers] == [8, 3, 3, 8]


def test_an_activation_that_gets_few_bits_is_read_before_quantization_where_outputs_are_made() -> None:
    eight = planned("two scales", "8/8")
    assert eight.plan.unquantized == {}
    narrow = assign_bits(eight, {"a2": 4})
    assert narrow.plan.unquantized == {"e": ("a2",)}
    assert assign_bits(narrow, {"a2": 8}).plan.unquantized == {"e": ("a2",)}  # as right, and a little slower


@pytest.mark.parametrize(
    ("tensor", "bits", "message"),
    [
        ("w2", 9, "tensor 'w2': bits are 9; expected 2 to 8"),
        ("w2", 1, "tensor 'w2': bits are 1; expected 2 to 8"),
        ("a2", True, "tensor 'a2': bits are True; expected 2 to 8"),
        ("a2", 4.0, "tensor 'a2': bits are 4.0; expected 2 to 8"),
        (
            "image",
            4,
            "'image': it is a carrier, which always has 8 bits; expected the name of a weight or",
        ),
        ("m", 4, "'m': it carries the integers of 'a1'; .* give the bits to 'a1'"),
        ("c3", 4, "'c3': it is a carrier"),
        ("c2", 4, "'c2': it is a node; .* its weight is 'w2'"),
        ("y", 4, "'y': it is a node; .* its weight is 'w4'"),
        ("s", 4, "'s': it is not quantized under this plan"),
        ("w33", 4, "'w33': it is not in the prepared model; .* did you mean 'w3'"),
        ("something", 4, "'something': it is not in the prepared model; expected the name of .* activation$"),
    ],
)
def test_what_cannot_have_these_bits_is_refused(tensor: str, bits: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        assign_bits(planned("residual", "4/4"), {"w3": 3, tensor: bits})


def test_the_weight_of_an_excluded_layer_is_refused() -> None:
    message = "'w2': it belongs to 'c2', which stays in float; .* leave out the --exclude that matches it"
    with pytest.raises(OptionError, match=message):
        assign_bits(planned("residual", "4/4", exclude="^c2$"), {"w2": 3})


def test_bits_of_tensors_are_planned_before_everything_that_follows_from_them() -> None:
    """The opset is that of the narrowest type; a weight that got 8 bits has less range, residuals are widened."""
    allotment = {"w2": 2, "w3": 8, "a2": 8, "a1": 3}
    options = PlanOptions.of("8/8", tensor_bits=allotment, reduce_range=True, wide_residuals=True)
    prepared, plan, _ = prepare_and_plan(model_of("residual"), options, target="native")
    assert prepared.model.opset_import[0].version == 25
    assert {name: plan.points[name].bits for name in ("w1", "w2", "w3", "w4")} == {"w1": 7, "w2": 2, "w3": 7, "w4": 7}
    assert (plan.points["a1"].role, plan.points["a1"].bits) == (Role.CARRIER, 8)
    assert plan.points["m_narrow"].bits == 3
    assert dict(options.tensor_bits) == allotment
    dry_run(prepared, plan, "native")


def test_a_target_has_the_last_word() -> None:
    with pytest.raises(OptionError, match="--target tensorrt: tensor 'w2' is to have 4 bits; expected 8 throughout"):
        find_target("tensorrt").plan(prepare(model_of("residual")).model, PlanOptions.of("8/8", tensor_bits={"w2": 4}))


def test_the_file_computes_what_the_mixed_plan_says() -> None:
    model, x = nets.residual(25), nets.images((2, 4, 12, 12))
    options = PlanOptions.of("4/4", tensor_bits={"w1": 2, "w2": 3, "w3": 6, "r1": 2, "r2": 5}, reduce_range=True)
    plan = find_target("ort").plan(model, options).plan
    tensors = calibrate(model, plan, {"x": x})
    content = find_target("ort").export(model, plan, tensors, metadata={}).SerializeToString()
    simulated = simulate(model, plan, tensors, {"x": x})["logits"]
    np.testing.assert_allclose(Session(content).run((x,))[0], simulated, rtol=0, atol=1e-4)
