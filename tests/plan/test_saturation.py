"""Which weights could make kernels without VNNI saturate, and what they become."""

import logging

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.passes.reduce_range import reduce_range
from pdq_export.plan.saturation import saturating_layers
from pdq_export.spec import Plan, Role
from pdq_export.targets import find_target

from ..onnx_text import fill, name_nodes, parse

BODY = """c1 = Conv (image, w1) a1 = Relu(c1) c2 = Conv (a1, w2) a2 = Relu(c2) p = GlobalAveragePool(a2) f = Flatten(p)
    y = Gemm <transB = 1> (f, w3)"""
WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (5, 4)}


def model() -> onnx.ModelProto:
    return name_nodes(fill(parse(BODY), WEIGHTS))


def planned(bits: str, **options: str) -> Plan:
    return make_plan(prepare(model()).model, PlanOptions.of(bits, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "options", "expected"),
    [
        ("4/4", {}, ["c1", "y"]),
        ("8/8", {}, ["c1", "c2", "y"]),
        ("8/7", {}, ["c1", "y"]),
        ("6/8", {}, ["c1", "y"]),
        ("7/8", {}, ["c1", "c2", "y"]),  # asymmetric: up to 127 from the zero_point
        ("7/8", {"weights": "symmetric"}, ["c1", "y"]),
        ("4/4", {"first_last": "6/8"}, []),
        ("4/4", {"first_last": "8/7"}, ["c1", "y"]),  # the average keeps 8 bits
    ],
)
def test_layers_that_can_saturate(bits: str, options: dict[str, str], expected: list[str]) -> None:
    plan = planned(bits, **options)
    assert saturating_layers(plan) == expected
    reduced = reduce_range(plan)
    assert saturating_layers(reduced) == []
    for layer in plan.layers:
        point, before = reduced.points[layer.weight], plan.points[layer.weight]
        changed = layer.node in expected
        assert (point.bits, point.symmetric) == ((7, True) if changed else (before.bits, before.symmetric))
    others = [name for name, point in plan.points.items() if point.role is not Role.WEIGHT]
    assert all(reduced.points[name] == plan.points[name] for name in others)


def test_signed_inputs_saturate_too_but_keep_their_weights() -> None:
    plan = find_target("tensorrt").plan(prepare(model()).model, PlanOptions.of("8/8")).plan
    assert saturating_layers(plan) == []
    assert saturating_layers(plan, signed=True) == ["c1", "c2", "y"]
    assert reduce_range(plan) == plan


def test_the_option_reaches_the_file(caplog: pytest.LogCaptureFixture) -> None:
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    with caplog.at_level(logging.INFO):
        result = pdq_export.quantize(model(), bits="8/8", reduce_range=True, calib=images, method="nearest")
    assert "weights that get 7 bits: those of c1, c2, y" in caplog.text
    assert all(np.abs(result.tensors[name].integers).max() <= 64 for name in WEIGHTS)
    assert result.report.settings["reduce_range"] is True
    # On any processor.
    assert result.report.outputs[0].quantized_simulated.max_relative_error < 1e-3


def test_an_option_that_changes_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    inspection = pdq_export.inspect_model(model(), bits="4/4", first_last="6/8", reduce_range=True)
    assert "--reduce-range changes nothing" in caplog.text
    assert inspection.settings["reduce_range"] is True


def test_inspect_tells_what_can_saturate() -> None:
    assert pdq_export.inspect_model(model(), bits="4/4").saturating == ("c1", "y")
    assert pdq_export.inspect_model(model(), bits="4/4", exclude="c1").saturating == ("y",)
    assert pdq_export.inspect_model(model(), bits="4/4", reduce_range=True).saturating == ()
