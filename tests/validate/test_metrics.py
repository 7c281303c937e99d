"""Metrics of users: what they get, what they may return, and what is said where they fail."""

import numpy as np
import pytest

from pdq_export.errors import OptionError
from pdq_export.validate import Metric, MetricMeter, compare_metrics

X = np.arange(24, dtype=np.float32).reshape(6, 4)
LABELS = np.arange(6)


def values(*functions, sizes=(4, 2), outputs=None, labels=LABELS):
    meter = MetricMeter([Metric.of(function) for function in functions], "the file")
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        batch = {"y": X[part]} if outputs is None else outputs(part)
        meter.update(batch, None if labels is None else labels[part], size)
        start += size
    return meter.result()


def test_a_function_gets_everything_at_once():
    def share(outputs, labels):
        np.testing.assert_array_equal(outputs["y"], X)
        np.testing.assert_array_equal(labels, LABELS)
        return (outputs["y"].argmax(1) == 3).mean()

    assert values(share) == {"share": 1.0}
    assert values(lambda outputs, labels: {"none": float(labels is None)}, labels=None) == {"none": 1.0}


def test_several_numbers_by_name():
    assert values(lambda outputs, _: {"a": 1, "b": np.float32(0.5)}) == {"a": 1.0, "b": 0.5}
    with pytest.raises(OptionError, match="gives 'a', as another does"):
        values(lambda *_: {"a": 1}, lambda *_: {"a": 2})


def test_a_class_gets_one_batch_after_the_other():
    class Mean:
        def __init__(self):
            self.sizes = []

        def update(self, outputs, labels):
            self.sizes.append((len(outputs["y"]), len(labels)))

        def compute(self):
            return {"first": self.sizes[0][0], "rest": sum(size for size, _ in self.sizes[1:])}

    assert values(Mean) == {"first": 4.0, "rest": 2.0}


def test_outputs_whose_sizes_depend_on_the_data_come_batch_by_batch():
    def boxes(part):
        return {"y": X[part], "boxes": X[: part.stop - part.start + 1], "free": X[part][:, : part.stop % 4 + 1]}

    def count(outputs, _):
        assert outputs["y"].shape == (6, 4)
        return sum(len(found) for found in outputs["boxes"]) + len(outputs["free"])

    assert values(count, outputs=boxes) == {"count": 5 + 3 + 2.0}


def test_one_metric_cannot_spoil_the_outputs_of_the_next():
    def spoil(outputs, _):
        outputs["y"] -= 1
        return 0

    with pytest.raises(OptionError, match=r"metric spoil: fails on the outputs of the file: ValueError"):
        values(spoil)


def test_what_fails_is_told_with_its_line():
    def broken(outputs, _):
        return outputs["z"]

    with pytest.raises(OptionError, match=r"metric broken: fails .* KeyError: 'z' \(.*test_metrics.py, line \d+\)"):
        values(broken)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", "is str; expected the metric to return a number, or a dict of numbers by name"),
        (None, "is NoneType; expected"),
        (float("nan"), "is nan; expected a finite number"),
        ([1, 2], "is list; expected"),
    ],
)
def test_what_is_no_number_is_refused(value, message):
    with pytest.raises(OptionError, match=message):
        values(lambda *_: value)


def test_both_files_have_the_same_numbers():
    (found,) = compare_metrics({"iou": 0.75}, {"iou": 0.5})
    assert (found.name, found.drop) == ("iou", 0.25)
    with pytest.raises(OptionError, match="iou of the first file and f1 of the second"):
        compare_metrics({"iou": 0.7}, {"f1": 0.6})
