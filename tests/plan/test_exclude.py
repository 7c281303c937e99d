"""What is excluded is in float, and so is what lies between: no pairs but those of integer kernels near a layer."""

import numpy as np
import onnx
import pytest

from pdq_export.commands.convert import convert
from pdq_export.commands.quantize import Result, quantize
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.floating import find_floating
from pdq_export.plan.passes.reduce_range import reduce_range
from pdq_export.spec import Plan, Role
from pdq_export.targets import find_target

from ..onnx_text import fill, name_nodes, parse

P = "<pads = [1, 1, 1, 1]>"
SHAPES = {"w0": (4, 3, 3, 3), "w": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3), "v": (5, 4)}
HEAD = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm <transB = 1> (f, v)"
RESIDUAL = f"""c0 = Conv {P} (image, w0) r0 = Relu(c0) c1 = Conv {P} (r0, w) r1 = Relu(c1)
    c2 = Conv {P} (r1, w2) s = Add(c2, r0) r2 = Relu(s) m = MaxPool <kernel_shape = [2, 2]> (r2)
    c3 = Conv {P} (m, w3) z = Relu(c3) {HEAD}"""
# a power spectrum, as audio networks compute it from two convolutions
SPECTRUM = f"""a = Conv {P} (image, w0) b = Conv {P} (image, w1) a2 = Mul(a, a) b2 = Mul(b, b) s = Add(a2, b2)
    t = Transpose <perm = [0, 1, 3, 2]> (s) k = Concat <axis = 1> (t, s) g = AveragePool <kernel_shape = [2, 2]> (k)
    l = Sqrt(g) c = Conv {P} (l, w8) z = Relu(c) {HEAD}"""


def model_of(body: str) -> onnx.ModelProto:
    return name_nodes(fill(parse(body), {**SHAPES, "w1": (4, 3, 3, 3), "w8": (4, 8, 3, 3)}))


def plan_of(body: str, bits: str = "4/2", **options: object) -> Plan:
    return make_plan(model_of(body), PlanOptions.of(bits, **options))  # type: ignore[arg-type]


def activations(plan: Plan) -> dict[str, int]:
    return {name: point.bits for name, point in plan.points.items() if point.role is not Role.WEIGHT}


def quantized(body: str, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Result:
    monkeypatch.setattr("pdq_export.plan.Plan", lambda **fields: reduce_range(Plan(**fields)))  # no kernel saturates
    images = np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)
    arguments = {"bits": "4/3", "method": "nearest", "options": {"samples": 16}, "device": "cpu", **changes}
    result = quantize(model_of(body), calib=images, **arguments)  # type: ignore[arg-type]
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 1e-5
    return result


def test_between_excluded_layers_nothing_is_quantized() -> None:
    assert activations(plan_of(SPECTRUM, exclude="^[ab]$")) == {"l": 2, "z": 8, "p": 8}
    options = PlanOptions.of("8/8", exclude="^[ab]$")
    assert activations(find_target("tensorrt").plan(model_of(SPECTRUM), options).plan) == {"l": 8, "p": 8}
    assert {"a2", "b2", "s", "k"} <= activations(plan_of(SPECTRUM)).keys()


def test_a_region_behind_the_last_layer_that_is_quantized_is_float() -> None:
    plan = plan_of(RESIDUAL, exclude=["^c2$", "^c3$", "^y$"])
    assert activations(plan) == {"image": 8, "r0": 2, "r1": 2}
    assert "p" in activations(plan_of(RESIDUAL, exclude="^y$"))  # the average is one of integers


@pytest.mark.parametrize(
    ("rules", "changed", "floating"),
    [
        ({"exclude": "^s$"}, {"r2": None}, ["s", "r2"]),
        ({"exclude_op": "Add"}, {"r2": None}, ["s", "r2"]),
        ({"exclude": "^m$"}, {"m": None, "r2": 0}, ["s", "r2", "m"]),  # nobody wants integers of the sum any more
        ({"exclude": "^(c2|s|r2)$"}, {"c2": 0, "w2": 0, "r2": None}, ["c2", "s", "r2"]),
        ({"exclude": "^r1$"}, {"c1": None, "r1": None}, ["r1"]),
    ],
)  # fmt: skip
def test_other_nodes_can_be_excluded(
    rules: dict[str, str], changed: dict[str, int | None], floating: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``changed``: points that absorb no activation (None) or are gone (0); all others are what they were."""
    usual, plan = plan_of(RESIDUAL), plan_of(RESIDUAL, **rules)
    gone = {name for name, value in changed.items() if value == 0}
    assert plan.points.keys() == (usual.points.keys() | changed.keys()) - gone
    assert {name for name, point in plan.points.items() if point != usual.points.get(name)} == changed.keys() - gone
    assert all(plan.points[name].absorbed is None for name in changed.keys() - gone)
    told = find_floating(GraphIndex(model_of(RESIDUAL)), plan)
    assert [node.node for node in told] == floating
    assert "excluded" in {node.reason for node in told}

    result = quantized(RESIDUAL, monkeypatch, **rules)
    assert convert(convert(result.model, "qcdq"), "ort") == result.model
    assert sum(result.report.kernels.integer.values()) == 5 - ("w2" in changed)


def test_an_excluded_operator_takes_no_integer_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantized(RESIDUAL, monkeypatch).report.kernels.between_pairs == {}
    assert quantized(RESIDUAL, monkeypatch, exclude_op=["Add"]).report.kernels.between_pairs["Add"] == 1
    wide = quantized(RESIDUAL, monkeypatch, exclude_op=["Add"], wide_residuals=True)
    assert wide.report.kernels.between_pairs["Add"] == 1
    assert wide.report.settings["exclude_op"] == ["Add"]


def test_a_hard_sigmoid_that_is_excluded_shares_no_integers() -> None:
    body = f"c0 = Conv {P} (image, w0) h = HardSigmoid <alpha = 0.2> (c0) z = Mul(c0, h) {HEAD}"
    assert plan_of(body).ramps
    assert not plan_of(body, exclude_op="HardSigmoid").ramps


def test_what_only_excluded_operators_read_has_no_low_bits() -> None:
    body = f"""c0 = Conv {P} (image, w0) r0 = Relu(c0) c1 = Conv {P} (r0, w) d1 = Relu(c1)
        c2 = Conv {P} (r0, w2) d2 = Relu(c2) k = Concat <axis = 1> (d1, d2) g = Sigmoid(k)
        c = Conv {P} (g, w8) z = Relu(c) {HEAD}"""
    assert {activations(plan_of(body, "2/2"))[name] for name in ("d1", "d2")} == {2}
    bits = activations(plan_of(body, "2/2", exclude=["^k$", "^g$"]))
    assert {bits[name] for name in ("d1", "d2")} == {8}


@pytest.mark.parametrize("rules", [{"exclude": "^e$"}, {"exclude_op": "Where"}])
def test_an_excluded_choice_keeps_its_condition(rules: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"""c0 = Conv {P} (image, w0) c1 = Conv {P} (image, w1) g = Greater(c0, c1) e = Where(g, c0, c1)
        c2 = Conv {P} (e, w2) z = Relu(c2) {HEAD}"""
    result = quantized(body, monkeypatch, **rules)
    choice = next(node for node in result.model.graph.node if node.op_type == "Where")
    assert choice.input[0] == "g"
