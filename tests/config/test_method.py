"""How a set of options is chosen, and what is refused."""

import dataclasses
from typing import Any

import pytest

from pdq_export.config.method import FAMILIES, METHODS, PRESETS, CalibrationOptions, choose_options
from pdq_export.errors import OptionError


def test_overrides_win_over_method_preset_and_family() -> None:
    options = choose_options(
        method="qdrop",
        preset="paper",
        family="depthwise",
        overrides={"iters": 7, "lambda_r": 1, "prediction_difference": True},
    )
    assert options.iters == 7
    assert options.samples == PRESETS["paper"]["samples"]
    assert options.rounding_weight == FAMILIES["depthwise"]["rounding_weight"]
    assert options.correction_iters == 0


def test_a_block_of_many_bits_takes_fewer_steps_unless_a_number_is_given() -> None:
    def steps(preset: str = "balanced", method: str = "pdq", **given: Any) -> list[tuple[int, int]]:
        """Of the optimizer and of correction in blocks of 2, 3, 4 and 8 bits."""
        options = choose_options(method=method, preset=preset, overrides=given)
        blocks = [options.for_block(bits) for bits in (2, 3, 4, 8)]
        return [(block.iters, block.correction_iters) for block in blocks]

    assert steps() == [(200, 20), (200, 20), (50, 5), (50, 5)]
    assert steps("fast") == [(100, 10), (100, 10), (50, 5), (50, 5)]
    assert steps("paper") == [(20000, 500)] * 4
    assert steps(iters=30) == [(30, 20), (30, 20), (30, 5), (30, 5)]
    assert steps(correction_iters=7) == [(200, 7), (200, 7), (50, 7), (50, 7)]
    assert steps(iters=30, iters_share=0.01, correction_iters=9, correction_share=0.01) == [(30, 9)] * 2 + [(1, 1)] * 2
    assert steps(method="qdrop") == [(200, 0), (200, 0), (50, 0), (50, 0)]
    assert steps(method="nearest") == [(0, 0)] * 4
    easy = choose_options().for_block(4)
    assert easy.for_block(4) == easy


def test_a_block_of_many_bits_compares_predictions_less_unless_an_interval_is_given() -> None:
    def intervals(method: str = "pdq", **given: Any) -> list[int]:
        options = choose_options(method=method, overrides=given)
        return [options.for_block(bits).prediction_interval for bits in (2, 3, 4, 8)]

    assert intervals() == [2, 2, 4, 4]
    assert intervals(prediction_interval=3) == [3] * 4
    assert intervals(prediction_share=0.2) == [2, 2, 10, 10]
    assert intervals(prediction_share=5e-324) == [2, 2, 2**62, 2**62]
    assert intervals(method="pd-quant") == [1] * 4


def test_scales_have_the_rate_that_is_given() -> None:
    assert choose_options().range_lr > 0 == choose_options(overrides={"scale_lr": 1e-3}).range_lr
    with pytest.raises(OptionError, match="scale_lr is given, but it has no effect"):
        choose_options(overrides={"scale_lr": 1e-3, "range_lr": 0.1})


def test_the_papers_method_and_preset_have_the_papers_numbers() -> None:
    paper = choose_options(preset="paper", method="pd-quant")
    # All that is said of the method without a preset is the paper's.
    assert paper == CalibrationOptions(samples=1024, iters=20000, correction_iters=500)
    assert (paper.lambda_r, paper.prediction_interval) == (0.1, 1)
    assert (paper.rounding_lr, paper.scale_lr, paper.correction_lr, paper.range_lr) == (3e-3, 4e-5, 1e-3, 0.0)
    assert not paper.compensate_rounding
    assert not paper.equalize_channels


@pytest.mark.parametrize("preset", PRESETS)
def test_a_method_is_the_same_in_every_preset(preset: str) -> None:
    """Which are budgets, and rates that suit them."""
    budget = {"samples", "iters", "iters_share", "correction_iters", "correction_share"}
    rates = {"rounding_lr", "scale_lr", "range_lr", "correction_lr"}

    def differing(one: CalibrationOptions, other: CalibrationOptions) -> set[str]:
        first, second = dataclasses.asdict(one), dataclasses.asdict(other)
        return {name for name in first if first[name] != second[name]}

    for method in METHODS:
        options = choose_options(method=method, preset=preset)
        assert differing(options, choose_options(method=method)) <= budget | rates
    published, ours = choose_options(method="pd-quant", preset=preset), choose_options(preset=preset)
    parts = {"compensate_rounding", "equalize_channels", "lambda_r", "prediction_interval", "prediction_share"}
    assert differing(published, ours) == parts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_goes_with_every_preset(method: str, preset: str) -> None:
    options = choose_options(method=method, preset=preset)
    assert (options.iters == 0) == (method == "nearest")
    assert options.per_layer == (method == "adaround")


def test_texts_are_read_as_the_field_wants_them() -> None:
    options = choose_options(overrides={"temperature": "2", "iters": "30", "learn_scales": "False", "lambda_r": 1})
    assert (options.temperature, options.iters, options.learn_scales, options.lambda_r) == (2.0, 30, False, 1.0)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("nearest", {"iters": 5}),
        ("nearest", {"seed": 1}),
        ("nearest", {"learn_rounding": True}),
        ("nearest", {"prediction_difference": True}),
        ("qdrop", {"temperature": 2.0}),
        ("qdrop", {"lambda_c": 0.1}),
        ("qdrop", {"correction_share": 0.5}),
        ("brecq", {"scale_lr": 1e-3}),
        ("pdq", {"iters": 0, "rounding_lr": 0.1}),
        ("pdq", {"iters": 0, "correction_iters": 5}),
        ("pdq", {"learn_rounding": False, "rounding_weight": 0.1}),
        ("pdq", {"learn_rounding": False, "learn_scales": False, "iters": 9}),
        ("pdq", {"correction_iters": 0, "correction_lr": 0.1}),
        ("pdq", {"prediction_difference": False, "output_loss": "kl"}),
        ("pdq", {"output_loss": "mse", "temperature": 2.0}),
    ],
)
def test_an_option_without_effect_is_refused(method: str, overrides: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="has no effect"):
        choose_options(method=method, overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rounding_weight": -1.0}, "rounding_weight is -1.0; expected 0 or a number above"),
        ({"rounding_weight": float("nan")}, "rounding_weight is nan"),
        ({"temperature": float("inf")}, "temperature is inf; expected a number above 0"),
        ({"exponent_end": -3.0}, "exponent_end is -3.0"),
        ({"temperature": 10**400}, "option temperature is 1000"),
        ({"warmup": 1.5}, "warmup is 1.5; expected a number from 0 to 1"),
        ({"iters_share": 1.5}, "iters_share is 1.5; expected a number above 0, at most 1"),
        ({"iters": 2.5}, "option iters is 2.5; expected a whole number"),
        ({"learn_scales": 1}, "option learn_scales is 1; expected true or false"),
        ({"temprature": 1}, "did you mean temperature"),
        ({"LAMBDA_R": 1}, "did you mean lambda_r"),
    ],
)
def test_wrong_values_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_options(overrides=overrides)


@pytest.mark.parametrize(
    "arguments",
    [{"method": "gptq"}, {"method": None}, {"preset": "best"}, {"family": "vit"}, {"overrides": CalibrationOptions()}],
)
def test_an_unknown_name_or_kind_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        choose_options(**arguments)


def test_every_field_has_an_effect_or_a_rule() -> None:
    always = {"samples", "search_samples", "per_layer", "equalize_channels"}
    from pdq_export.config.method import _NEEDS

    assert {field.name for field in dataclasses.fields(CalibrationOptions)} == always | set(_NEEDS)
