"""Gates of `quantize`: judged on the evaluation images, and refused before calibration where they say nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import junitparser
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from pdq_export import quantize, validate_models
from pdq_export.cli import app
from pdq_export.data import ImageSet
from pdq_export.errors import OptionError

from ..onnx_text import classifier

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((96, 3, 8, 8), dtype=np.float32)
LABELS = RNG.integers(0, 7, 96)
FAST = {"method": "nearest", "samples": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    model = classifier(8, 7)
    rng = np.random.default_rng(1)
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3)), ("w3", (8, 7))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    return model


def labelled(labels: NDArray[Any] | None = LABELS) -> ImageSet:
    return ImageSet(pixels=IMAGES, labels=None if labels is None else labels.astype(np.int64), source="eval")


def right(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> dict[str, float]:
    return {"right": float((outputs["scores"].argmax(1) == labels).mean()), "images": len(labels)}


def test_verdicts_and_files(net: onnx.ModelProto, tmp_path: Path) -> None:
    """What a gate fails on is written all the same, and `validate` says the same of it."""
    files = {"output": tmp_path / "q.onnx", "report": tmp_path / "q.json", "junit": tmp_path / "q.xml"}
    asked: dict[str, Any] = {
        "max_drop": 100,
        "min_sqnr": 90,
        "max_size_ratio": 9,
        "max_latency_ratio": 100,
        "no_float_layers": True,
        "min_metric": ["right=0", "images=97"],
    }
    result = quantize(net, calib=IMAGES[:32], eval=labelled(), bits="8/8", metrics=[right], **FAST, **files, **asked)
    gates = {gate.option: gate for gate in result.report.gates}
    failed = ["--min-sqnr", "--min-metric images"]
    assert [name for name, gate in gates.items() if not gate.passed] == failed
    assert set(result.files) == {*files.values()}
    written = json.loads(files["report"].read_text())
    assert [gate["option"] for gate in written["gates"]] == list(gates)
    (suite,) = junitparser.JUnitXml.fromfile(str(files["junit"]))
    assert [case.name for case in suite if not case.is_passed] == failed
    again = validate_models(net, files["output"], data=labelled(), metrics=[right], **asked)
    for gate in again.gates:
        if gate.option != "--max-latency-ratio":
            assert gate.value == pytest.approx(gates[gate.option].value, rel=0.3), gate.option
    assert again.top1_changes == result.report.top1_changes
    assert {value.name: value.quantized_value for value in again.metrics} == {
        value.name: value.quantized_value for value in result.report.metrics
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval": labelled(None), "max_drop": 1}, "--max-drop 1: eval has no labels; expected one for each image"),
        ({"eval": None, "min_sqnr": 1}, "--min-sqnr: there are no evaluation images"),
        ({"metrics": [right], "min_metric": "wrong=1"}, "no metric gives 'wrong'; expected one of right, images"),
        ({"metrics": [lambda *_: 1 / 0]}, "fails on the outputs of FP32: ZeroDivisionError"),
        ({"metric": "nowhere_at_all:f"}, "--metric nowhere_at_all:f: no module 'nowhere_at_all'"),
        ({"junit": "g.xml"}, "there is no gate to tell of"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_calibration(
    net: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("pdq_export.commands.calibrating.calibrate", lambda *_, **__: pytest.fail("it has calibrated"))
    given = {"calib": IMAGES[:32], "eval": labelled(), "output": tmp_path / "q.onnx", **FAST, **changes}
    with pytest.raises(OptionError) as caught:
        quantize(net, **given)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("logging_as_before")
def test_the_exit_code_is_that_of_a_failed_gate(
    net: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(net, "net.onnx")
    np.savez("data.npz", images=IMAGES, labels=LABELS)
    arguments = ["quantize", "net.onnx", "--calib", "data.npz", "--eval", "data.npz", "--method", "nearest"]
    arguments += ["--samples", "32", "--max-drop", "100", "--markdown", "q.md"]
    failing = CliRunner().invoke(app, [*arguments, "--min-sqnr", "90", "--output", "q.onnx"])
    assert failing.exit_code == 1, failing.output
    assert failing.output.count("--min-sqnr 90: output 'scores':") == 1
    assert "FAILED: --min-sqnr 90: output 'scores':" in failing.stdout
    assert "passed: --max-drop 100" in failing.stdout
    assert {"q.onnx", "q.md"} <= {path.name for path in tmp_path.iterdir()}
    exists = CliRunner().invoke(app, [*arguments, "--output", "again.onnx"])
    assert exists.exit_code == 2
    assert "q.md: exists already" in exists.stderr
    both = CliRunner().invoke(app, [*arguments, "--output", "q.md", "--overwrite"])
    assert "q.md: is both --markdown and --output; expected two files" in both.stderr
