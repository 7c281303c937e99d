"""Histograms on the axis of what numbers are rounded to, and samples whose class changes: against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pdq_export.validate.changes import MOST, ChangesMeter
from pdq_export.validate.histograms import BINS, Bins, WeightHistogram


@given(
    hnp.arrays(np.float32, 40, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from([2, 4, 16, 256]),
    st.floats(-100, 100),
    st.floats(1e-6, 1e6),
)
def test_every_number_is_counted_once(x: np.ndarray, levels: int, low: float, span: float) -> None:
    bins = Bins.around(low, low + span, levels)
    found = bins.histogram(bins.count(x))
    assert len(found.counts) == BINS
    assert sum(found.counts) == int((~np.isnan(x)).sum())
    inner = x[np.isfinite(x) & (x >= low) & (x <= low + span)]
    assert sum(found.counts[15:-15]) >= len(inner)  # what lies in the range is within the middle


def test_bins_are_numpys() -> None:
    x = np.random.default_rng(0).standard_normal(5000)
    bins = Bins.around(-1.0, 2.0, 16)
    edges = bins.start + bins.width * np.arange(BINS + 1)
    expected = np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0]
    assert np.abs(bins.count(x) - expected).sum() <= 2  # numbers on an edge


@pytest.mark.parametrize(("qmin", "qmax"), [(-2, 1), (0, 15), (-64, 63), (0, 255)])
def test_weights(qmin: int, qmax: int) -> None:
    rng = np.random.default_rng(1)
    integers = rng.integers(qmin, qmax + 1, (6, 5, 3)).astype(np.int16)
    found = WeightHistogram.of("conv", integers, qmin, qmax, floats=integers + rng.uniform(-0.5, 0.5, integers.shape))
    assert (found.elements, found.bits) == (90, (qmax - qmin).bit_length())
    assert len(found.integers.counts) <= 64
    if found.integers.width == 1:
        assert list(found.integers.counts) == [int((integers == q).sum()) for q in range(qmin, qmax + 1)]
    assert found.floats is not None
    assert sum(found.integers.counts) == sum(found.floats.counts) == 90
    assert sum(found.floats.counts[16:-16]) == 90  # within half a step of an integer


def test_changes_are_those_of_argmax() -> None:
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((200, 5)).astype(np.float32)
    others = scores + rng.standard_normal((200, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 200)
    scores[7] = math.nan
    meter = ChangesMeter()
    for start in range(0, 200, 32):
        meter.update(scores[start : start + 32], others[start : start + 32], labels[start : start + 32], start)
    found = meter.result()
    assert found is not None
    changed = [n for n in range(200) if n != 7 and scores[n].argmax() != others[n].argmax()]
    assert (found.images, found.changed, len(found.samples)) == (199, len(changed), min(MOST, len(changed)))
    margins = {n: float(scores[n].max() - scores[n, others[n].argmax()]) for n in changed}
    assert [one.number for one in found.samples] == sorted(margins, key=lambda n: -margins[n])[:MOST]
    for one in found.samples:
        assert one.margin == pytest.approx(margins[one.number])
        assert (one.float_class, one.quantized_class) == (scores[one.number].argmax(), others[one.number].argmax())
        assert one.label == labels[one.number]
    named = found.with_names(["a", "b", "c", "d", "e"])
    assert all(named.names[str(one.label)] == "abcde"[one.label or 0] for one in named.samples)


def test_what_is_no_class_does_not_change() -> None:
    meter = ChangesMeter()
    meter.update(np.zeros((4, 3, 2, 2)), np.ones((4, 3, 2, 2)), None, 0)
    meter.update(np.zeros((4, 1)), np.ones((4, 1)), None, 4)
    assert meter.result() is None
