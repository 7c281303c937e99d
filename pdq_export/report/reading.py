"""Reports read back from their JSON, which somebody else may have written: nothing in it is trusted."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pdq_export.report import layers, sensitivity
from pdq_export.report.layers import LayerReport
from pdq_export.report.report import SCHEMA_VERSION, Report
from pdq_export.report.sensitivity import WrittenSensitivity
from pdq_export.spec.plain import from_text, parse_json
from pdq_export.validate.histograms import Histogram

LONGEST = 1 << 25  # characters; a thousand layers take a tenth of it
_DIGITS = 20  # of an integer: seeds have as many
_MOST_BINS = 256
_LARGEST = 1e30  # of a number: squares and sums of such ones are numbers, too
_ACCURACIES = {
    "float": "float_accuracy",
    "quantized": "quantized_accuracy",
    "simulated": "simulated_accuracy",
    "float_where_simulated": "float_where_simulated",
    "quantized_where_simulated": "quantized_where_simulated",
}
_SHARES = ("top1", "top5", "argmax_agreement", "chance_agreement", "clipped")

T = TypeVar("T")


def read_report(text: str) -> Report | LayerReport | WrittenSensitivity:
    """What `Report.to_json`, `LayerReport.to_json` or `SensitivityReport.to_json` wrote, of its schema's version here.

    Raises ValueError, which says where in it what was found and what was expected.
    """
    plain = parse_json(text, longest=LONGEST, what="the report", digits=_DIGITS)
    kinds = {"groups": sensitivity.SCHEMA_VERSION, "tensors": layers.SCHEMA_VERSION, "outputs": SCHEMA_VERSION}
    kind = next((key for key in kinds if isinstance(plain, dict) and key in plain), None)
    if kind is None or "schema_version" not in plain:
        raise ValueError(
            "expected the JSON of a report, with schema_version, of quantize, validate, compare or sensitivity"
        )
    version, newest = plain["schema_version"], kinds[kind]
    if version != newest or type(version) is not int:
        raise ValueError(f"schema_version is {str(version)[:20]!r}; expected {newest}; take the version that wrote it")
    if kind != "outputs":
        read: LayerReport | WrittenSensitivity
        read = _read(WrittenSensitivity, plain) if kind == "groups" else _read(LayerReport, plain)
        _check(read, "")
        return read
    report = _read(Report, _fields(plain))
    _check(report, "")
    _check_report(report)
    return report


def _fields(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a report by name, where the schema has them elsewhere."""
    fields = {name: value for name, value in plain.items() if name != "accuracy"}
    accuracy = plain.get("accuracy")
    if not isinstance(accuracy, dict):
        raise ValueError("accuracy: expected an object with float and quantized")
    return {**fields, **{field: accuracy.get(name) for name, field in _ACCURACIES.items()}}


def _read(kind: type[T], plain: Mapping[str, Any]) -> T:
    text = json.dumps(plain, ensure_ascii=False).encode(errors="replace").decode()  # of a name's byte that is no UTF-8
    return from_text(kind, text, longest=2 * LONGEST, what="the report", extra="ignore", digits=_DIGITS)


def _check(value: Any, place: str) -> None:
    """Raise ValueError for numbers that nothing can be computed of, wherever they are."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= _LARGEST and not place.startswith("settings."):
            raise ValueError(f"{place} is {value!r:.40}; expected a number within {_LARGEST:g}")
        if place.rpartition(".")[2] in _SHARES and not 0 <= value <= 1:
            raise ValueError(f"{place} is {value!r:.40}; expected a share from 0 to 1")
        if place.rpartition(".")[2] in ("images", "size", "bytes", "elements", "number") and value < 0:
            raise ValueError(f"{place} is {value!r:.40}; expected 0 or more")
    if isinstance(value, Histogram):
        _check_histogram(value, place)
    for name, inner in _inner(value):
        _check(inner, f"{place}.{name}" if place else name)


def _inner(value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((str(name)[:60], inner) for name, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(number), inner) for number, inner in enumerate(value))


def _check_histogram(found: Histogram, place: str) -> None:
    if not found.counts or len(found.counts) > _MOST_BINS or not found.width > 0 or min(found.counts) < 0:
        raise ValueError(f"{place}: expected 1 to {_MOST_BINS} counts, 0 or more each, of bins wider than 0")


def _check_report(report: Report) -> None:
    if report.images < 1:
        raise ValueError(f"images is {report.images}; expected 1 or more")
    for changes in filter(None, (report.top1_changes,)):
        if min(changes.lost, changes.gained) < 0 or changes.lost + changes.gained > max(changes.images, 1):
            raise ValueError("top1_changes: expected lost and gained among as many images")
    for accuracy in (report.float_accuracy, report.quantized_accuracy, report.simulated_accuracy):
        if accuracy is not None and accuracy.images < 1:
            raise ValueError(f"accuracy: of {accuracy.images} images; expected 1 or more")
    for output in report.outputs:
        if output.quantized_float is None and output.simulated_float is None:
            raise ValueError(f"outputs: nothing is known of {output.name[:60]!r}; expected quantized_float")
    if report.latency is not None and not min(report.latency.float_ms, report.latency.quantized_ms) > 0:
        raise ValueError("latency: expected times above 0")
    for weight in report.weights:
        if not weight.qmin <= weight.qmax or not math.isfinite(weight.qmax - weight.qmin):
            raise ValueError(f"weights: {weight.layer[:60]!r} has no integers; expected qmin up to qmax")
