"""End-to-end learning of scales and biases: what changes, what must not, and that it helps."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from pdq_export.calibrate import BlockProgress, Calibrated, end_to_end
from pdq_export.calibrate.cache import Store
from pdq_export.calibrate.engine import WHOLE_NETWORK
from pdq_export.calibrate.losses import prediction_difference
from pdq_export.errors import CalibrationError
from pdq_export.options import CalibrationOptions
from pdq_export.spec import Role

from .networks import Example, calibrate_example, residual

TINY = CalibrationOptions(iters=4, samples=64, correction_iters=0, batch_size=16)
STEPS = {"end_to_end_iters": 40, "end_to_end_lr": 3e-3}
CPU = torch.device("cpu")


def run(example: Example, progress: Any = None, **changes: Any) -> Calibrated:
    return calibrate_example(example, dataclasses.replace(TINY, **changes), progress=progress)


@torch.no_grad()
def difference(example: Example, result: Calibrated) -> float:
    quantized, full = result.simulation(example.images), example.network(example.images)
    return prediction_difference(quantized, full, [1], 1.0).item()


@pytest.fixture(scope="module")
def before() -> tuple[Example, Calibrated]:
    example = residual("2/2")
    return example, run(example)


@pytest.mark.parametrize("augment", [False, True])
def test_scales_and_biases_are_learned_and_integers_stay(before: tuple[Example, Calibrated], augment: bool) -> None:
    example, blocks = before
    result = run(example, augment=augment, **STEPS)
    for name, q in result.tensors.items():
        old = blocks.tensors[name]
        np.testing.assert_array_equal(q.zero_point, old.zero_point)
        if q.point.role is Role.WEIGHT:
            np.testing.assert_array_equal(q.integers, old.integers)
        same = np.array_equal(q.scale, old.scale)
        assert same == (q.point.role is Role.CARRIER), name
    assert blocks.biases == {}
    assert result.biases.keys() == {layer.bias for layer in example.plan.layers}
    assert difference(example, result) < 0.9 * difference(example, blocks)
    assert not any(parameter.requires_grad for parameter in result.simulation.parameters())


def test_activation_scales_stay_where_they_are_not_to_be_learned() -> None:
    example = residual("2/2")
    blocks, result = (run(example, learn_scales=False, **steps) for steps in ({}, STEPS))
    changed = {name for name, q in result.tensors.items() if not np.array_equal(q.scale, blocks.tensors[name].scale)}
    assert changed == {name for name, point in example.plan.points.items() if point.role is Role.WEIGHT}


def test_what_does_not_help_is_not_kept(before: tuple[Example, Calibrated], caplog: pytest.LogCaptureFixture) -> None:
    example, blocks = before
    with caplog.at_level(logging.INFO):
        result = run(example, end_to_end_iters=5, end_to_end_lr=3.0)
    assert "not closer" in caplog.text
    assert result.biases == {}
    for name, q in result.tensors.items():
        np.testing.assert_array_equal(q.scale, blocks.tensors[name].scale)


def test_the_result_does_not_depend_on_the_size_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the last bits of sums."""
    example = residual("2/2")
    whole = run(example, augment=False, **STEPS)
    monkeypatch.setattr(end_to_end, "_ELEMENTS", 5 * 3 * 8 * 8)
    parts = run(example, augment=False, **STEPS)
    for name, q in whole.tensors.items():
        np.testing.assert_allclose(parts.tensors[name].scale, q.scale, rtol=2e-2)


def test_progress_counts_it_as_one_more_block() -> None:
    example = residual("4/4")
    calls: list[BlockProgress] = []
    run(example, progress=calls.append, end_to_end_iters=7)
    count = len(example.plan.blocks) + 1
    assert {call.count for call in calls} == {count}
    last = [call for call in calls if call.block == WHOLE_NETWORK]
    assert [(call.index, call.step, call.steps) for call in last] == [(count - 1, 5, 7), (count - 1, 7, 7)]
    assert all(math.isfinite(call.loss) for call in last)


def test_a_loss_that_is_not_finite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "prediction_difference", lambda outputs, *_: outputs[0].sum() * math.nan)
    with pytest.raises(CalibrationError, match="end_to_end_iters=0"):
        run(residual("4/4"), end_to_end_iters=2)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 8, 8), True), ((1, 5, 9), True), ((8, 8, 3), False), ((3, 8, 1), False), ((24,), False)],
)
def test_views_are_drawn_of_images_alone(shape: tuple[int, ...], expected: bool) -> None:
    store = Store.of_process(CPU, None)
    inputs = [store.adopt(torch.zeros(4, *shape))]
    assert end_to_end._has_views(CalibrationOptions(), inputs) is expected
    assert not end_to_end._has_views(CalibrationOptions(), inputs * 2)
    assert not end_to_end._has_views(CalibrationOptions(augment=False), inputs)
    store.close()
