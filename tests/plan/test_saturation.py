"""Which weights could make kernels without VNNI saturate."""

import onnx
import pytest

import pdq_export
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.saturation import saturating_layers
from pdq_export.spec import Plan
from pdq_export.targets import find_target

from ..onnx_text import fill, name_nodes, parse

BODY = """c1 = Conv (image, w1) a1 = Relu(c1) c2 = Conv (a1, w2) a2 = Relu(c2) p = GlobalAveragePool(a2) f = Flatten(p)
    y = Gemm <transB = 1> (f, w3)"""
WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (5, 4)}


CASES: list[tuple[str, dict[str, str], list[str]]] = [
    ("4/4", {}, ["c1", "y"]),
    ("8/8", {}, ["c1", "c2", "y"]),
    ("8/7", {}, ["c1", "y"]),
    ("6/8", {}, ["c1", "y"]),
    ("7/8", {}, ["c1", "c2", "y"]),  # asymmetric: up to 127 from the zero_point
    ("7/8", {"weights": "symmetric"}, ["c1", "y"]),
    ("4/4", {"first_last": "6/8"}, []),
    ("4/4", {"first_last": "8/7"}, ["c1", "y"]),  # the average keeps 8 bits
]


def model() -> onnx.ModelProto:
    return name_nodes(fill(parse(BODY), WEIGHTS))


def planned(bits: str, **options: str) -> Plan:
    return make_plan(prepare(model()).model, PlanOptions.of(bits, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "options", "expected"), CASES)
def test_layers_that_can_saturate(bits: str, options: dict[str, str], expected: list[str]) -> None:
    plan = planned(bits, **options)
    assert saturating_layers(plan) == expected


def test_signed_inputs_saturate_too() -> None:
    plan = find_target("tensorrt").plan(prepare(model()).model, PlanOptions.of("8/8")).plan
    assert saturating_layers(plan) == []
    assert saturating_layers(plan, signed=True) == ["c1", "c2", "y"]


def test_inspect_tells_what_can_saturate() -> None:
    assert pdq_export.inspect_model(model(), bits="4/4").saturating == ("c1", "y")
    assert pdq_export.inspect_model(model(), bits="4/4", exclude="c1").saturating == ("y",)
    assert pdq_export.inspect_model(model(), bits="4/4", reduce_range=True).saturating == ()
