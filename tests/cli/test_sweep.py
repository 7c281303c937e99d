"""``pdq-export sweep``, with a stand-in for the runs."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pdq_export.commands import sweep as sweeps
from pdq_export.commands import sweep_key
from pdq_export.commands.sweep import Job
from pdq_export.gates import Gate
from pdq_export.report import ModelInfo
from pdq_export.report.sweep import Finished
from pdq_export.validate import Accuracy

from .conftest import Run
from .fakes import make_report

TEXT = '[sweep]\nmodels = ["model.onnx"]\nbits = ["8/8", "2/2"]\n[data]\ncalib = "images.npy"\n'


def report(top1: float, *, passed: bool = True) -> dict[str, Any]:
    gate = Gate(option="max_drop", value=9.0, limit=1.0, unit="points", passed=passed, told="9 points, limit 1")
    made = make_report(
        model=ModelInfo(name="model.onnx", sha256="1" * 64, size=49_380),
        quantized=ModelInfo(name="", sha256="0" * 64, size=12_345),
        float_accuracy=Accuracy(images=200, top1=0.95, top5=1.0),
        quantized_accuracy=Accuracy(images=200, top1=top1, top5=1.0),
        gates=(gate,),
    )
    plain: dict[str, Any] = json.loads(made.to_json())
    return plain


@pytest.fixture
def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What comes of a run, by its bits."""
    results: dict[str, dict[str, Any]] = {"8/8": {"report": report(0.9)}, "2/2": {"report": report(0.8)}}
    monkeypatch.setattr(sweep_key, "_digest_model", lambda model: model)

    def perform(job: Job, progress: object) -> Finished:
        return job.ended(**results[job.run.varied["bits"]])

    monkeypatch.setattr(sweeps, "perform", perform)
    (folder / "bits.toml").write_text(TEXT)
    return results


def test_a_table(run: Run, folder: Path, made: dict[str, dict[str, Any]]) -> None:
    result = run("sweep", "bits.toml")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith("model.onnx")]
    assert rows == [
        ["model.onnx", "8/8", "95.00", "%", "90.00", "%", "95.00", "%", "21.3", "12,345", "0.250", "0"],
        ["model.onnx", "2/2", "95.00", "%", "80.00", "%", "95.00", "%", "21.3", "12,345", "0.250", "0"],
    ]
    assert "2 of 2: model.onnx, bits 2/2: top-1 80.00 %" in result.stderr
    assert (folder / "bits-results" / "results.csv").read_text().count("\n") == 3
    made.clear()  # nothing is made again
    again = json.loads(run("sweep", "bits.toml", "--json").stdout)
    assert [found["figures"]["top1"] for found in again["runs"]] == [0.9, 0.8]


def test_a_gate_that_fails(run: Run, made: dict[str, dict[str, Any]]) -> None:
    made["2/2"]["report"] = report(0.8, passed=False)
    result = run("sweep", "bits.toml", "--folder", "kept")
    assert result.exit_code == 1
    assert "gate failed: model.onnx, bits 2/2: max_drop 9 points, limit 1\n" in result.stdout
    result = run("sweep", "bits.toml", "--folder", "kept", "--json")
    assert result.exit_code == 1
    assert "gate failed: model.onnx, bits 2/2: max_drop 9 points, limit 1\n" in result.stderr


def test_a_run_that_fails(run: Run, made: dict[str, dict[str, Any]]) -> None:
    made["2/2"] = {"error": "the loss is nan"}
    result = run("sweep", "bits.toml")
    assert result.exit_code == 2
    assert "error: model.onnx, bits 2/2: the loss is nan" in result.stderr
    assert "90.00 %" in result.stdout


def test_values_are_shown_as_a_file_has_them(run: Run, folder: Path, made: dict[str, dict[str, Any]]) -> None:
    lists = 'bits = ["8/8"]\nexclude = [["a", "b"], []]\nwide_residuals = [true]'
    (folder / "lists.toml").write_text(TEXT.replace('bits = ["8/8", "2/2"]', lists))
    result = run("sweep", "lists.toml")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith("model.onnx")]
    assert [row[:5] for row in rows] == [
        ["model.onnx", "8/8", "a,", "b", "true"],
        ["model.onnx", "8/8", "none", "true", "95.00"],
    ]
    assert "1 of 2: model.onnx, bits 8/8, exclude a, b, wide_residuals true: top-1" in result.stderr
    table = list(csv.DictReader((folder / "lists-results" / "results.csv").read_text().splitlines()))
    assert [(row["exclude"], row["wide_residuals"]) for row in table] == [("a, b", "true"), ("none", "true")]
    assert "| a, b | true |" in (folder / "lists-results" / "results.md").read_text()
