"""``pdq-export sweep``, with a stand-in for the runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from pdq_export.commands import sweep as sweeps
from pdq_export.commands.sweep import Job
from pdq_export.report.sweep import Finished

from .conftest import Run

TEXT = '[sweep]\nmodels = ["model.onnx"]\nbits = ["8/8", "2/2"]\n[data]\ncalib = "images.npy"\n'


def report(top1: float, *, passed: bool = True) -> dict[str, Any]:
    gate = {"option": "max_drop", "told": "9 points, limit 1", "passed": passed}
    return {
        "accuracy": {"float": {"top1": 0.95}, "quantized": {"top1": top1}},
        "outputs": [{"quantized_float": {"argmax_agreement": 0.99, "sqnr_db": 20.0}}],
        "kernels": {},
        "quantized": {"size": 12_345, "sha256": "0" * 64},
        "size_ratio": 0.25,
        "latency": None,
        "gates": [gate],
    }


@pytest.fixture
def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What comes of a run, by its bits."""
    results: dict[str, dict[str, Any]] = {"8/8": {"report": report(0.9)}, "2/2": {"report": report(0.8)}}
    monkeypatch.setattr(sweeps, "_digest_model", lambda model: model)

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
        ["model.onnx", "8/8", "95", "%", "90", "%", "99", "%", "20.0", "12,345", "0.250", "0"],
        ["model.onnx", "2/2", "95", "%", "80", "%", "99", "%", "20.0", "12,345", "0.250", "0"],
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
    assert "gate failed: model.onnx, bits 2/2: max_drop 9 points, limit 1" in result.stderr


def test_a_run_that_fails(run: Run, made: dict[str, dict[str, Any]]) -> None:
    made["2/2"] = {"error": "the loss is nan"}
    result = run("sweep", "bits.toml")
    assert result.exit_code == 2
    assert "error: model.onnx, bits 2/2: the loss is nan" in result.stderr
    assert "90 %" in result.stdout
