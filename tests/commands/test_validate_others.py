"""`validate` on files of other tools: its figures are those of a plain script, which shares no code with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat

from pdq_export import calib_data
from pdq_export.cli import app
from tests.quantized_files import quantize_by_onnxruntime

MODEL, DATA = calib_data.path("fashion_resnet.onnx"), calib_data.path("eval.npz")
COUNT = 1500


def run(model: Path, x: NDArray[np.float32]) -> NDArray[np.float64]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + 16]})[0] for i in range(0, len(x), 16)]).astype(float)


def by_a_plain_script(
    fp32: Path, quantized: Path, x: NDArray[np.float32], labels: NDArray[np.integer[Any]]
) -> dict[str, float]:
    a, b = run(fp32, x), run(quantized, x)
    noise = np.sqrt(((a - b) ** 2).sum() / (a**2).sum())
    figures = {"sqnr": -20 * np.log10(noise), "relative": noise, "agreement": (a.argmax(1) == b.argmax(1)).mean()}
    for name, scores in (("fp32", a), ("quantized", b)):
        figures[f"{name} top-1"] = (scores.argmax(1) == labels).mean()
        figures[f"{name} top-5"] = np.mean([y in np.argsort(-row)[:5] for row, y in zip(scores, labels, strict=True)])
    figures["size"] = quantized.stat().st_size / fp32.stat().st_size
    return figures


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_figures_are_those_of_a_plain_script(tmp_path: Path, form: QuantFormat) -> None:
    stored = np.load(DATA)
    mean, std = (stored[name].astype(np.float64).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    x, labels = ((stored["images"][:COUNT] / 255 - mean) / std).astype(np.float32), stored["labels"][:COUNT]
    np.savez(tmp_path / "test.npz", images=x, labels=labels)
    quantized = tmp_path / "int8.onnx"
    onnx.save(quantize_by_onnxruntime(MODEL, x[:64], tmp_path, form), quantized)
    plain = by_a_plain_script(MODEL, quantized, x, labels)
    words = ["validate", str(MODEL), str(quantized), "--data", str(tmp_path / "test.npz")]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    accuracy, (output,) = report["accuracy"], report["outputs"]
    found = output["quantized_float"]
    assert accuracy["float"] == {"images": COUNT, "top1": plain["fp32 top-1"], "top5": plain["fp32 top-5"]}
    assert accuracy["quantized"] == {
        "images": COUNT,
        "top1": plain["quantized top-1"],
        "top5": plain["quantized top-5"],
    }
    assert found["argmax_agreement"] == plain["agreement"]
    assert found["sqnr_db"] == pytest.approx(plain["sqnr"], rel=1e-9)
    assert found["relative_error"] == pytest.approx(plain["relative"], rel=1e-9)
    assert report["size_ratio"] == plain["size"]
