"""Weights of 7 bits where wider ones could make kernels without VNNI saturate."""

import logging

import numpy as np
import pytest

import pdq_export
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.passes.reduce_range import reduce_range
from pdq_export.plan.saturation import saturating_layers
from pdq_export.spec import Role
from pdq_export.targets import find_target

from ..test_saturation import CASES, WEIGHTS, model, planned


@pytest.mark.parametrize(("bits", "options", "expected"), CASES)
def test_weights_that_can_saturate_get_seven_bits(bits: str, options: dict[str, str], expected: list[str]) -> None:
    plan = planned(bits, **options)
    reduced = reduce_range(plan)
    assert saturating_layers(reduced) == []
    for layer in plan.layers:
        point, before = reduced.points[layer.weight], plan.points[layer.weight]
        changed = layer.node in expected
        assert (point.bits, point.symmetric) == ((7, True) if changed else (before.bits, before.symmetric))
    others = [name for name, point in plan.points.items() if point.role is not Role.WEIGHT]
    assert all(reduced.points[name] == plan.points[name] for name in others)


def test_weights_of_signed_inputs_keep_their_range() -> None:
    prepared = prepare(model()).model
    plan = find_target("tensorrt").plan(prepared, PlanOptions.of("8/8")).plan
    assert reduce_range(plan) == plan
    assert reduce_range(make_plan(prepared, PlanOptions.of("8/8"))) != plan


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
