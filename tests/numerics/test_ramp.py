"""Scales that make HardSigmoid a Clip of integers."""

import numpy as np
import pytest
import torch

from pdq_export.numerics.ramp import LARGEST_MOVE, LARGEST_STRETCH, align_to_ramp, ramp_qparams
from pdq_export.numerics.search import QParams


def qparams(low: float, high: float) -> QParams:
    scale = (high - low) / 255
    return QParams(scale=torch.tensor(scale), zero_point=torch.tensor(float(round(-low / scale))))


@pytest.mark.parametrize("knee", [3.0, 2.5])
@pytest.mark.parametrize(
    ("low", "high"), [(-6, 8), (-60, 48), (-5.8, 0.3), (-2.4, 7), (-1, 12), (-13, 0), (-9.5, 2.5), (-20, 20)]
)
def test_integers_are_the_inputs_clipped(low: float, high: float, knee: float) -> None:
    searched = qparams(low, high)
    x = align_to_ramp(searched, knee, 255, alone=False)
    assert 1 - LARGEST_MOVE - 1e-6 <= x.scale / searched.scale <= LARGEST_STRETCH * (1 + LARGEST_MOVE) + 1e-6
    assert_shares_integers(x, knee)


def assert_shares_integers(x: QParams, knee: float) -> None:
    y = ramp_qparams(x.scale.item(), int(x.zero_point), knee)
    assert y is not None
    assert 0 <= y.zero_point <= 255
    q = np.arange(256)
    gate = np.clip((q - x.zero_point.item()) * x.scale.item() / (2 * knee) + 0.5, 0, 1)
    wanted = np.clip(np.rint(gate / y.scale.item()) + y.zero_point.item(), 0, 255)
    np.testing.assert_array_equal(wanted, np.clip(q, wanted[0], wanted[-1]))
    # exact, where the ramp's ends lie within 8 bits
    inside = wanted < 255
    np.testing.assert_allclose(((wanted - y.zero_point.item()) * y.scale.item())[inside], gate[inside], atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-164, 130), (-0.3, 0.2), (0, 5), (-1, 1)])
def test_a_scale_that_would_change_too_much_stays(low: float, high: float) -> None:
    searched = qparams(low, high)
    assert align_to_ramp(searched, 3.0, 255, alone=False) is searched
    assert ramp_qparams(searched.scale.item(), int(searched.zero_point), 3.0) is None


@pytest.mark.parametrize(("low", "high"), [(-164, 130), (-0.3, 0.2), (0, 5), (-6, 8)])
def test_what_only_the_ramp_reads_has_its_integers_between_the_knees(low: float, high: float) -> None:
    x = align_to_ramp(qparams(low, high), 2.5, 255, alone=True)
    assert_shares_integers(x, 2.5)
    values = (np.arange(256) - x.zero_point.item()) * x.scale.item()
    assert (values[0], values[254]) == pytest.approx((-2.5, 2.5))
