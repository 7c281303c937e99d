import dataclasses
import logging

import pytest
import torch

from pdq_export.advice import asked_for_fewer_bits, remedies
from pdq_export.calibrate.reconstruct import BlockProblem, BlockRows, _rates
from pdq_export.calibrate.watch import steepest_rise, warn_of_collapse, warn_of_divergence
from pdq_export.config.method import CalibrationOptions, choose_options
from pdq_export.spec import Block, Point, Role
from tests.calibrate.test_step import example

EIGHT = Point(tensor="a", role=Role.ACTIVATION, bits=8)
SEVEN = Point(tensor="w", role=Role.WEIGHT, bits=7, axis=0, symmetric=True)  # as --reduce-range has it
FOUR = Point(tensor="b", role=Role.ACTIVATION, bits=4)


@pytest.mark.parametrize(("error", "warned"), [(0.5, False), (3.0, True)])
def test_a_block_that_is_worse_than_nothing_is_told(
    error: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [torch.tensor(9.0)] * 10 + [torch.tensor(error)] * 20
    with caplog.at_level(logging.WARNING):
        warn_of_divergence("b1", errors, [torch.tensor(1.0)] * 30, [EIGHT], rates=["rounding_lr", "range_lr"])
    assert bool(caplog.records) == warned
    assert not warned or "block b1: its loss diverged: the error of its output, 3," in caplog.text
    assert not warned or "lower rounding_lr and range_lr (--set rounding_lr=...), or " in caplog.text


@pytest.mark.parametrize(("preset", "of_scales"), [("fast", "range_lr"), ("paper", "scale_lr")])
def test_the_rates_that_are_advised_can_be_set(preset: str, of_scales: str) -> None:
    one = example()
    rows = BlockRows(quantized=(), corrected=(), wanted=())
    problem = BlockProblem(name="b", model=one.model, rows=rows, scales=[one.quantizer])
    chosen = choose_options(preset=preset)
    rates = _rates(problem, chosen)
    assert rates == ["rounding_lr", of_scales]
    for rate in rates:
        lower = choose_options(preset=preset, overrides={rate: getattr(chosen, rate) / 2})
        assert _rates(problem, lower) == rates
    without = dataclasses.replace(one.model, weights=[])
    assert _rates(dataclasses.replace(problem, model=without), chosen) == [of_scales]


@pytest.mark.parametrize(("error", "warned"), [(0.1, False), (2.0, True), (float("nan"), True)])
def test_a_collapsed_network_is_told(error: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    full = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        warn_of_collapse("y", full, full + error, lambda: "wait")
    assert ("output y: the network has collapsed" in caplog.text) == warned


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_single_images_do_not_decide(size: float, caplog: pytest.LogCaptureFixture) -> None:
    full = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    good, bad = full + 0.1, full + 2.0
    good[3] = 100.0
    warn_of_collapse("y", full * size, good * size, str)
    assert not caplog.records
    bad[3] = full[3] = 100.0  # right where it is easy
    warn_of_collapse("y", (full - full.mean(0)) * size, (bad - full.mean(0)) * size, str)
    assert "output y: the network has collapsed" in caplog.text


def test_outputs_that_never_change_and_integers_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_collapse("y", torch.ones(4, 3), torch.ones(4, 3), str)
    rounded = torch.ones(4, 3) + 1e-7 * torch.arange(12.0).reshape(4, 3)
    assert rounded.std(0).max() > 0
    warn_of_collapse("y", rounded, torch.full((4, 3), 1.1), str)
    warn_of_collapse("y", torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), str)
    assert not caplog.records


def test_more_bits_are_advised_only_where_there_are_more(caplog: pytest.LogCaptureFixture) -> None:
    options = CalibrationOptions()
    assert "--bits" not in remedies([EIGHT, SEVEN], options)
    assert "--exclude" in remedies([EIGHT, SEVEN], options)
    assert "--bits" in remedies([EIGHT, FOUR], options)
    assert "--method" not in remedies([FOUR], options)
    assert "--method pdq" in remedies([FOUR], CalibrationOptions(prediction_difference=False))
    warn_of_divergence("b1", [torch.tensor(2.0)], [torch.tensor(1.0)], [EIGHT, SEVEN])
    warn_of_divergence("b2", [torch.tensor(2.0)], [torch.tensor(1.0)], [FOUR])
    first, second = (record.getMessage() for record in caplog.records)
    assert "more bits" not in first
    assert "more bits" in second


@pytest.mark.parametrize(
    ("settings", "fewer"),
    [
        ({}, False),
        ({"bits": "8/8", "layer_bits": []}, False),
        ({"bits": "8/4", "layer_bits": []}, True),
        ({"bits": "8/8", "layer_bits": ["a=b=8/8", "fc=4/8"]}, True),
    ],
)
def test_what_a_report_says_of_the_bits(settings: dict[str, object], fewer: bool) -> None:
    assert asked_for_fewer_bits(settings) == fewer


def test_where_the_error_rises() -> None:
    def block(name: str, inputs: str, outputs: str) -> Block:
        return Block(name=name, inputs=(inputs,), outputs=(outputs,), nodes=(), layers=())

    blocks = [block("b1", "x", "a"), block("b2", "a", "b"), block("b3", "b", "y")]
    told = steepest_rise({"a": 0.02, "b": 0.85}, blocks)
    assert told.endswith("block b2, from 2% to 85%")
