"""Gates on figures: verdicts at the limit and beside it, and what can be chance, by brute force."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.config.config import make_section
from pdq_export.config.gates import GatesSection
from pdq_export.errors import OptionError
from pdq_export.gates import Gate, judge, parse_limits
from pdq_export.gates.statistics import agreement_below, drop_beyond, mcnemar, mean_below
from pdq_export.validate import KernelCount, Measurements, MetricValue, OutputAgreement, Spread, Top1Changes

from ..cli.fakes import agreement


def measured(**changes: Any) -> Measurements:
    fields: dict[str, Any] = {
        "images": 500,
        "float_accuracy": None,
        "quantized_accuracy": None,
        "simulated_accuracy": None,
        "outputs": (
            OutputAgreement(name="y", quantized_float=agreement(0.95), quantized_simulated=None, simulated_float=None),
        ),
        "kernels": KernelCount(integer={"QLinearConv": 2}, floating={"Conv": 1}, floating_nodes=("conv_3",)),
    }
    return Measurements(**{**fields, **changes})


def gates(found: Measurements | None = None, **asked: Any) -> list[Gate]:
    evidence = {name: asked.pop(name) for name in ("size_ratio", "latency", "metrics") if name in asked}
    section = make_section(asked, GatesSection)
    limits = parse_limits(section, metrics=len(evidence.get("metrics", ())))
    return list(judge(limits, found or measured(), **{"size_ratio": 0.25, **evidence}))


def changes(lost: int, gained: int, images: int = 500) -> Measurements:
    return measured(top1_changes=Top1Changes(images=images, lost=lost, gained=gained))


def output(**fields: Any) -> Measurements:
    changed = dataclasses.replace(agreement(), **fields)
    return measured(
        outputs=(OutputAgreement(name="y", quantized_float=changed, quantized_simulated=None, simulated_float=None),)
    )


@pytest.mark.parametrize(("lost", "gained", "passed"), [(5, 0, True), (6, 0, False), (6, 1, True), (0, 9, True)])
def test_a_drop_at_the_limit_is_none_beyond_it(lost: int, gained: int, passed: bool) -> None:
    (gate,) = gates(changes(lost, gained), max_drop=1)
    assert gate.passed is passed
    assert gate.value == 100 * (lost - gained) / 500
    assert gate.limit == 1


def test_a_drop_that_can_be_chance_is_said_to_be() -> None:
    """A drop of 1.2 points on 500 images: p = 0.21."""
    noisy = changes(12, 6)
    (gate,) = gates(noisy, max_drop=1)
    assert not gate.passed
    assert "that can be chance: take more images, or give --confidence 95" in gate.told
    (gate,) = gates(noisy, max_drop=1, confidence=95)
    assert gate.passed
    assert "beyond the limit, but not significant at 95 %" in gate.told
    (gate,) = gates(noisy, max_drop=2)
    assert gate.passed
    assert "no more than can be chance" in gate.told
    (gate,) = gates(changes(40, 10), max_drop=1, confidence=95)
    assert not gate.passed
    assert "significant at 95 %" in gate.told


@given(lost=st.integers(0, 9), gained=st.integers(0, 9))
def test_mcnemar_is_the_share_of_coins_that_fall_so_unevenly(lost: int, gained: int) -> None:
    changed = lost + gained
    uneven = abs(lost - gained)
    share = sum(math.comb(changed, k) for k in range(changed + 1) if abs(changed - 2 * k) >= uneven) / 2**changed
    assert mcnemar(Top1Changes(images=100, lost=lost, gained=gained)) == pytest.approx(share)


def test_the_error_of_a_drop_is_that_of_paired_differences() -> None:
    lost, gained, images = 17, 5, 400
    differences = np.array([1] * lost + [-1] * gained + [0] * (images - lost - gained))
    found = Top1Changes(images=images, lost=lost, gained=gained)
    assert found.drop == pytest.approx(100 * differences.mean())
    assert found.error == pytest.approx(100 * differences.std() / math.sqrt(images))


@pytest.mark.parametrize(("equal", "limit", "passed"), [(99, 99, True), (98, 99, False), (100, 100, True)])
def test_agreement_at_the_limit(equal: int, limit: float, passed: bool) -> None:
    (gate,) = gates(output(images=100, positions=100, argmax_agreement=equal / 100), min_agreement=limit)
    assert gate.passed is passed
    assert gate.value == equal


def test_agreement_is_significant_where_clopper_and_pearsons_bound_is_below_the_limit() -> None:
    from scipy import stats

    for equal, limit, confidence in itertools.product((80, 90, 94, 99), (0.9, 0.95, 0.97), (90, 95, 99)):
        found = output(images=100, positions=100, argmax_agreement=equal / 100)
        (gate,) = gates(found, min_agreement=100 * limit, confidence=confidence)
        bound = stats.beta.ppf(confidence / 100, equal + 1, 100 - equal)
        assert gate.passed is not (equal / 100 < limit and bound < limit), (equal, limit, confidence)


def test_positions_of_one_image_are_not_independent() -> None:
    """A million pixels of four images say little of a share that differs from image to image."""
    found = output(images=4, positions=1_000_000, argmax_agreement=0.9, argmax_error=0.04).outputs[0].against_float
    assert 0.05 < agreement_below(found, 0.95) < 0.2
    alone = dataclasses.replace(found, images=1_000_000)
    assert agreement_below(alone, 0.95) < 1e-6


def test_signal_to_noise() -> None:
    sure, unsure = (output(images=100, sqnr_db=19.0, sqnr_error_db=error) for error in (0.1, 2.0))
    assert [gate.passed for gate in gates(sure, min_sqnr=20)] == [False]
    assert [gate.passed for gate in gates(sure, min_sqnr=20, confidence=95)] == [False]
    assert [gate.passed for gate in gates(unsure, min_sqnr=20, confidence=95)] == [True]
    assert [gate.passed for gate in gates(unsure, min_sqnr=19)] == [True]
    (equal,) = gates(output(sqnr_db=None), min_sqnr=99)
    assert (equal.passed, equal.value) == (True, None)


def test_what_has_no_error_is_no_chance() -> None:
    assert mean_below(1.0, None, 1, 2.0) is None
    assert mean_below(1.0, 0.0, 5, 2.0) == 0.0


def test_the_worst_output_counts() -> None:
    good, bad = (
        OutputAgreement(name=name, quantized_float=agreement(0.9, sqnr), quantized_simulated=None, simulated_float=None)
        for name, sqnr in (("good", 30.0), ("bad", 10.0))
    )
    (gate,) = gates(measured(outputs=(good, bad)), min_sqnr=20)
    assert not gate.passed
    assert "output 'bad': 10.00 dB" in gate.told


def test_with_confidence_every_output_counts() -> None:
    """The one with the smallest figure is not the one that is surely too small."""
    unsure, sure = (
        OutputAgreement(
            name=name,
            quantized_float=dataclasses.replace(agreement(), images=40, sqnr_db=sqnr, sqnr_error_db=error),
            quantized_simulated=None,
            simulated_float=None,
        )
        for name, sqnr, error in (("unsure", 9.0, 4.0), ("sure", 10.5, 0.1))
    )
    (gate,) = gates(measured(outputs=(unsure, sure)), min_sqnr=12, confidence=95)
    assert not gate.passed
    assert "output 'sure': 10.50 dB" in gate.told
    (gate,) = gates(measured(outputs=(unsure, sure)), min_sqnr=12)
    assert "output 'unsure'" in gate.told
    assert "so do 'sure' fail" in gate.told
    (gate,) = gates(measured(outputs=(unsure,)), min_sqnr=12, confidence=95)
    assert gate.passed


@pytest.mark.parametrize("confidence", [None, 95])
@pytest.mark.parametrize("asked", [{"min_agreement": 90}, {"min_sqnr": 20}])
def test_an_output_that_cannot_be_compared_fails(asked: dict[str, float], confidence: float | None) -> None:
    good = output(images=500, positions=500, argmax_agreement=1.0, sqnr_db=60.0, sqnr_error_db=0.1).outputs
    left = {"boxes": "the second file has no such output"}
    (gate,) = gates(measured(outputs=good, uncompared=left), **asked, confidence=confidence)
    assert not gate.passed
    assert "cannot be compared, and fails: output 'boxes': the second file has no such output" in gate.told
    (gate,) = gates(measured(outputs=(), uncompared=left), **asked, confidence=confidence)
    assert (gate.passed, gate.value) == (False, None)
    (gate,) = gates(measured(outputs=good), **asked, confidence=confidence)
    assert gate.passed


def test_numbers_that_are_none_fail_the_gate_of_top1() -> None:
    broken = dataclasses.replace(changes(0, 0), not_finite=("y",), uncompared={"y": "it contains NaN"})
    (gate,) = gates(broken, max_drop=1)
    assert not gate.passed
    assert "output 'y': it contains NaN" in gate.told


def test_no_signal_is_told() -> None:
    nothing = output(sqnr_db=None, relative_error=None, median_relative_error=None, max_relative_error=None)
    (gate,) = gates(nothing, min_sqnr=20)
    assert (gate.passed, gate.value) == (False, None)
    assert "there is no signal" in gate.told


def test_few_images_do_not_pass_for_want_of_significance() -> None:
    """One image has no error, and of two lost ones nobody can be sure: the figure counts as it is."""
    one = output(images=1, sqnr_db=1.0, sqnr_error_db=None)
    (gate,) = gates(one, min_sqnr=20, confidence=95)
    assert not gate.passed
    assert "so few images cannot make it significant at 95 %" in gate.told
    for images, confidence in ((5, 99), (2, 95), (1, 50)):
        (gate,) = gates(changes(images, 0, images), max_drop=1, confidence=confidence)
        assert not gate.passed
        assert "so few images" in gate.told
    (gate,) = gates(changes(5, 0, 5), max_drop=1, confidence=95)
    assert not gate.passed
    assert "; significant at 95 %" in gate.told
    (gate,) = gates(output(images=1, positions=1, argmax_agreement=0.0), min_agreement=60, confidence=99)
    assert not gate.passed
    assert "so few images" in gate.told


def test_a_drop_is_significant_beyond_the_limit_not_beyond_none() -> None:
    """Of 10,000 images 501 net are lost: surely a drop, but hardly one of more than 5 points."""
    for limit, passed in ((5, True), (0.5, False)):
        (gate,) = gates(changes(700, 199, 10_000), max_drop=limit, confidence=95)
        assert gate.passed is passed, limit


@given(lost=st.integers(0, 400), gained=st.integers(0, 400))
def test_beyond_no_drop_the_score_test_is_mcnemars(lost: int, gained: int) -> None:
    from scipy import stats

    found = Top1Changes(images=1000, lost=lost, gained=gained)
    exact = stats.binomtest(lost, max(lost + gained, 1), 0.5, alternative="greater").pvalue
    score = stats.norm.sf((lost - gained) / math.sqrt(max(lost + gained, 1)))
    assert drop_beyond(found, 0) == pytest.approx(max(score, exact) if lost > gained else 1.0)


@pytest.mark.parametrize(("limit", "gained"), [(0.0, 0.02), (0.01, 0.005), (0.01, 0.05), (0.05, 0.02)])
def test_a_file_at_the_limit_fails_no_more_often_than_it_may(limit: float, gained: float) -> None:
    """20,000 draws of 1,000 images each: 5 % would fail of an exact test."""
    rng = np.random.default_rng(0)
    draws, times = np.unique(
        rng.multinomial(1000, [gained + limit, gained, 1 - 2 * gained - limit], 20_000)[:, :2],
        axis=0,
        return_counts=True,
    )
    failed = [drop_beyond(Top1Changes(images=1000, lost=int(b), gained=int(c)), limit) < 0.05 for b, c in draws]
    assert 0.02 < times[failed].sum() / 20_000 < 0.06


def test_a_file_far_beyond_the_limit_fails() -> None:
    assert drop_beyond(Top1Changes(images=1000, lost=60, gained=10), 0.01) < 1e-4


def test_size_latency_and_layers() -> None:
    spread = Spread(median=0.6, low=0.55, high=0.7)
    asked = {"max_size_ratio": 0.25, "max_latency_ratio": 0.5, "no_float_layers": True}
    size, latency, layers = gates(latency=spread, **asked)
    assert (size.passed, latency.passed, layers.passed) == (True, False, False)
    assert str(layers) == "--no-float-layers: 1 of 3 layers run in float: 'conv_3'"
    assert "0.550 to 0.700" in latency.told
    (near,) = gates(latency=spread, max_latency_ratio=0.65)
    assert near.passed
    assert "within the spread" in near.told


def test_a_value_that_reads_like_the_limit_gets_more_digits() -> None:
    (gate,) = gates(size_ratio=0.25004, max_size_ratio=0.25)
    assert not gate.passed
    assert "× 0.25004 of" in gate.told


@pytest.mark.parametrize(
    ("option", "limit", "passed"),
    [
        ("min_metric", 0.6, True),
        ("min_metric", 0.61, False),
        ("max_metric", 0.6, True),
        ("max_metric", 0.59, False),
        ("max_metric_drop", 0.125, True),
        ("max_metric_drop", 0.1, False),
        ("max_metric_rise", 0, True),
        ("max_metric_drop", 0.12499, False),
    ],
)
def test_metrics(option: str, limit: float, passed: bool) -> None:
    found = (MetricValue(name="iou", float_value=0.725, quantized_value=0.6),)
    (gate,) = gates(metrics=found, **{option: {"iou": limit}})
    assert gate.passed is passed
    assert gate.option == f"--{option.replace('_', '-')} iou"


def test_rounding_is_no_drop() -> None:
    assert 0.8 - 0.7 > 0.1
    for option, values in (("max_metric_drop", (0.8, 0.7)), ("max_metric_rise", (0.7, 0.8))):
        found = (MetricValue(name="iou", float_value=values[0], quantized_value=values[1]),)
        assert [gate.passed for gate in gates(metrics=found, **{option: {"iou": 0.1}})] == [True]
        assert [gate.passed for gate in gates(metrics=found, **{option: {"iou": 0.0999999}})] == [False]


def test_no_layer_at_all_is_no_pass() -> None:
    nothing = KernelCount(integer={}, floating={}, floating_nodes=())
    (gate,) = gates(measured(kernels=nothing), no_float_layers=True)
    assert not gate.passed
    assert "no layer that could run in integers" in gate.told


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_metric": "iou"}, "--min-metric 'iou': expected NAME=VALUE"),
        ({"min_metric": "iou=much"}, "expected NAME=VALUE, a number"),
        ({"min_metric": "iou=nan"}, "expected NAME=VALUE, a number"),
        ({"min_metric": ["iou=1", "iou=2"]}, "iou is given twice"),
        ({"min_metric": "iou=0.5"}, "no metric gives 'iou'; expected one of none: --metric is not given"),
        ({"junit": "gates.xml"}, "--junit gates.xml: there is no gate to tell of"),
        ({"min_agreement": 0.95}, "--min-agreement 0.95: expected a share in percent; did you mean 95?"),
        ({"min_agreement": 1}, "did you mean 100?"),
        ({"confidence": 95}, "--confidence 95: there is no gate that it is for"),
        ({"confidence": 95, "max_size_ratio": 1}, "--confidence 95: there is no gate that it is for"),
        ({"max_drop": -1}, "--max-drop -1: expected a number from 0 to 100"),
        ({"confidence": 0.95}, "--confidence 0.95: expected a number from 50 to 99.9999"),
    ],
)
def test_what_cannot_be_judged_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        gates(**asked)
    assert message in str(caught.value)


def test_a_number_that_no_metric_gives() -> None:
    limits = parse_limits(make_section({"min_metric": "iou=0.5"}, GatesSection), metrics=1)
    with pytest.raises(OptionError, match="no metric gives 'iou'; expected one of mean_iou, f1"):
        limits.check_metrics(["mean_iou", "f1"])
