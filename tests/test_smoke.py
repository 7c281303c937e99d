"""One whole run of the command line on the embedded model: the shortest that goes through every stage."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from pdq_export import calib_data
from pdq_export.cli import app


@pytest.mark.usefixtures("logging_as_before")
def test_nearest_on_the_embedded_model(tmp_path: Path) -> None:
    with np.load(calib_data.path("eval.npz")) as archive:
        few = {name: array[:256] if array.ndim and len(array) > 1 else array for name, array in archive.items()}
    np.savez(tmp_path / "few.npz", **few)
    files = {"--calib": calib_data.path("calib.npz"), "--eval": tmp_path / "few.npz"}
    files |= {"--output": tmp_path / "small.onnx", "--report": tmp_path / "small.json"}
    arguments = ["quantize", str(calib_data.path("fashion_resnet.onnx")), "--method", "nearest", "--samples", "64"]
    result = CliRunner().invoke(app, [*arguments, "--bits", "4/4", *(str(x) for pair in files.items() for x in pair)])
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"))
    accuracy = json.loads((tmp_path / "small.json").read_text())["accuracy"]
    assert accuracy["float"]["top1"] > 0.9
    assert accuracy["quantized"]["top1"] > accuracy["float"]["top1"] - 0.1
