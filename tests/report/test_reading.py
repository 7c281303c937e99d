"""Reports read back: the same, of older versions too, and nothing of somebody else's is trusted."""

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdq_export.gates import Gate
from pdq_export.report import BlockCourse, LayerReport, ModelInfo, Report, read_report, to_html
from pdq_export.report.layers import LayerRow
from pdq_export.report.remedies import Remedy
from pdq_export.validate import LatencyPair, MetricValue, Spread, Top1Changes
from pdq_export.validate.changes import ChangedPredictions, ChangedSample
from pdq_export.validate.histograms import Histogram, WeightHistogram

from ..cli.fakes import make_report

HISTOGRAM = Histogram(start=-1.5, width=0.25, counts=(0, 3, 9, 2))
ROW = LayerRow(
    tensor="t",
    node="n",
    op_type="Conv",
    layers=("n",),
    output_db=12.0,
    own_db=20.0,
    handed_on_db=None,
    sqnr_db=9.0,
    quantizer_db=22.0,
    cosine=0.9,
    range=(-1.0, 4.0),
    quantizer_range=(0.0, 3.0),
    clipped=0.01,
    levels_used=15,
    levels=16,
    weight_bits=4,
    weight_levels_used=14,
    remedy=Remedy(line="--layer-bits n=8/8", bytes=100),
    histogram=HISTOGRAM,
)
ERRORS = LayerReport(images=64, evaluation="e", model="m.onnx", quantized="q.onnx", tensors=(ROW,), left_out=("x",))
WEIGHT = WeightHistogram(layer="n", bits=4, qmin=0, qmax=15, elements=14, integers=HISTOGRAM, floats=HISTOGRAM)
GATE = Gate(option="--max-drop", value=0.5, limit=1, unit="points", error=0.2, p_value=0.4, passed=True, told="fine")
SPREAD = Spread(median=0.5, low=0.4, high=0.6)
FULL = make_report(
    top1_changes=Top1Changes(images=200, lost=3, gained=2),
    latency=LatencyPair(batch=1, threads=1, float_ms=2.0, quantized_ms=1.0, ratio=SPREAD, clips=3, clip_ratio=SPREAD),
    settings={"bits": "4/4", "target": "ort", "seed": 2**63 - 1, "asked": {"bits": "4/4"}, "lr": 1e-3},
    layers=({"node": "n", "op_type": "Conv", "weight_shape": (8, 3, 3, 3), "weight_bits": 4, "weight_bytes": 90},),
    floating=({"node": "f", "op_type": "Softmax", "reason": "it is float"},),
    metrics=(MetricValue(name="iou", float_value=0.5, quantized_value=0.4),),
    gates=(GATE, dataclasses.replace(GATE, passed=False)),
    warnings=("beware",),
    changed=ChangedPredictions(
        images=200,
        changed=1,
        samples=(ChangedSample(number=4, float_class=1, quantized_class=2, label=None, margin=0.5),),
        names={"1": "cat"},
    ),
    blocks=(BlockCourse.of("b", [3.0, 2.0, 1.0], {"steps": 1.5}),),
    weights=(WEIGHT,),
    layer_errors=ERRORS,
    model=ModelInfo(name="m\udcff.onnx", sha256="00", size=1000),
)
PLAIN = json.loads(FULL.to_json())


def test_it_is_the_same() -> None:
    read = read_report(FULL.to_json())
    assert isinstance(read, Report)
    again = dataclasses.replace(read, model=FULL.model)
    assert json.loads(again.to_json()) == PLAIN
    assert read.model.name == "m?.onnx"  # a byte that is no UTF-8
    assert read_report(ERRORS.to_json()) == ERRORS


def test_older_and_newer_ones() -> None:
    """What is missing is as if nothing were known of it; what nobody knows is not looked at."""
    new = ("warnings", "changed", "blocks", "weights", "layer_errors")
    old = {name: value for name, value in PLAIN.items() if name not in new}
    read = read_report(json.dumps(old))
    assert isinstance(read, Report)
    assert (read.layer_errors, read.blocks, read.images) == (None, (), 200)
    assert isinstance(read_report(json.dumps({**PLAIN, "later": {"a": [1]}})), Report)


def changed(path: str, value: Any) -> str:
    plain = copy.deepcopy(PLAIN)
    *places, last = path.split(".")
    inner: Any = plain
    for place in places:
        inner = inner[int(place) if isinstance(inner, list) else place]
    inner[int(last) if isinstance(inner, list) else last] = value
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "expected the JSON of a report"),
        ("{}", "expected the JSON of a report"),
        ("not JSON", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        (changed("schema_version", 2), "schema_version is '2'; expected 1"),
        (changed("schema_version", True), "schema_version"),
        (changed("accuracy", None), "accuracy"),
        (changed("accuracy.float.top1", 1.5), "float_accuracy.top1 is 1.5; expected a share"),
        (changed("accuracy.quantized.images", 0), "of 0 images"),
        (changed("images", 0), "images is 0"),
        (changed("images", "200"), "images is '200'"),
        (changed("model.size", -1), "model.size is -1"),
        (changed("gates.0.passed", "yes"), "gates[0].passed"),
        (changed("gates.0.value", 1e300), "gates.0.value"),
        (changed("latency.float_ms", 0), "latency: expected times above 0"),
        (changed("top1_changes.lost", 900), "top1_changes"),
        (changed("weights.0.integers.counts", []), "weights.0.integers: expected 1 to 256 counts"),
        (changed("weights.0.integers.counts", [1] * 300), "expected 1 to 256 counts"),
        (changed("weights.0.qmin", 99), "has no integers"),
        (changed("layer_errors.tensors.0.cosine", "x"), "layer_errors.tensors[0].cosine"),
        (changed("outputs.0.quantized_float", None), "nothing is known of 'logits'"),
        (FULL.to_json().replace('"median": 0.5', '"median": NaN'), "NaN in the report"),
        (FULL.to_json().replace('"images": 200', '"images": ' + "9" * 30, 1), "30 digits"),
    ],
)
def test_what_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011, the message is looked at
        read_report(text)
    assert told in str(raised.value)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, one in inner for leaf in _leaves(one, (*path, key)))]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(_leaves(PLAIN)[1:]),
    st.sampled_from(
        [None, -1, 0, 1, 2**40, 1e29, -1e29, 1e-30, "", "<script>", [], {}, [[]], {"a": 1}, True, ["x"] * 9]
    ),
)
def test_whatever_is_changed_is_refused_or_shown(path: tuple[Any, ...], value: Any) -> None:
    plain = copy.deepcopy(PLAIN)
    inner = plain
    for place in path[:-1]:
        inner = inner[place]
    inner[path[-1]] = value
    try:
        read = read_report(json.dumps(plain))
    except ValueError:
        return
    page = to_html(read)
    assert b"<script>" not in page.partition(b'<script>"use strict"')[0].partition(b"<body>")[2]
