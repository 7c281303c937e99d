"""The report's JSON schema, and how a report is made of measurements."""

import dataclasses
import json

import pytest

import pdq_export
from pdq_export.report import ModelInfo, Report
from pdq_export.validate import Accuracy, KernelCount, LatencyPair, Measurements, OutputAgreement, Spread

from ..cli.fakes import agreement, make_report

ACCURACY = Accuracy(images=200, top1=0.9, top5=None)


def test_json_follows_the_schema():
    report = make_report(
        quantized_accuracy=ACCURACY,
        kernels=KernelCount(integer={}, floating={"MatMul": 1}, floating_nodes=("m",)),
        settings={"bits": "4/4", "target": "ort", "seed": 3},
        model=ModelInfo(name="net.onnx", sha256="00", size=1000),
        layers=({"node": "conv", "weight_bits": 4},),
    )
    text = report.to_json()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(read) == [
        "schema_version",
        "versions",
        "model",
        "quantized",
        "size_ratio",
        "settings",
        "images",
        "accuracy",
        "top1_changes",
        "outputs",
        "kernels",
        "saturated_layers",
        "session_config",
        "latency",
        "min_onnxruntime",
        "layers",
        "floating",
        "parts",
        "predictions",
        "uncompared",
        "not_finite",
        "metrics",
        "gates",
        "loss",
        "remedies",
        "warnings",
        "changed",
        "blocks",
        "weights",
        "layer_errors",
        "search",
    ]
    assert read == report.to_dict()
    assert read["schema_version"] == 1
    assert read["model"] == {"name": "net.onnx", "sha256": "00", "size": 1000}
    assert read["size_ratio"] == read["quantized"]["size"] / 1000
    assert set(read["accuracy"]["quantized"]) == {"images", "top1", "top5"}
    assert set(read["outputs"][0]["quantized_simulated"]) == {
        "images",
        "argmax_agreement",
        "chance_agreement",
        "sqnr_db",
        "relative_error",
        "median_relative_error",
        "max_relative_error",
        "counted",
        "positions",
        "argmax_error",
        "sqnr_error_db",
    }
    assert read["kernels"] == {
        "integer": {},
        "floating": {"MatMul": 1},
        "floating_nodes": ["m"],
        "between_pairs": {},
    }


def test_what_is_infinite_is_null():
    output = OutputAgreement(
        name="y", quantized_float=agreement(sqnr=None), quantized_simulated=None, simulated_float=None
    )
    report = make_report(outputs=(output,))
    assert json.loads(report.to_json())["outputs"][0]["quantized_float"]["sqnr_db"] is None


def test_latency_has_its_note():
    ratio = Spread(median=1.2, low=1.1, high=1.3)
    latency = LatencyPair(batch=1, threads=1, float_ms=1.0, quantized_ms=1.2, ratio=ratio, clips=2, clip_ratio=ratio)
    read = json.loads(make_report(latency=latency).to_json())["latency"]
    assert read["ratio"] == read["clip_ratio"] == {"median": 1.2, "low": 1.1, "high": 1.3}
    assert read["note"] == make_report(latency=latency).latency_note
    assert json.loads(make_report().to_json())["latency"] is None


def test_a_report_is_what_was_measured_and_on_what():
    report = make_report()
    fields = [field.name for field in dataclasses.fields(Measurements)]
    measured = Measurements(**{name: getattr(report, name) for name in fields})
    info = ModelInfo.of("net.onnx", b"abc")
    composed = Report.of(measured, model=info, quantized=info, settings={"seed": 3})
    assert all(getattr(composed, name) == getattr(measured, name) for name in fields)
    assert (composed.model, composed.settings["seed"]) == (info, 3)
    assert composed.versions["pdq-export"] == pdq_export.__version__


def test_a_model_is_known_by_its_bytes():
    joined = ModelInfo.of("net.onnx", b"abc", b"d")
    assert joined == ModelInfo.of("net.onnx", b"abcd")
    assert joined.size == 4
    assert joined.sha256.startswith("88d4266f")
