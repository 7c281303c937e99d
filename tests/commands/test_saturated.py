"""Kernels that saturate on this processor, in a file that `validate` is given."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.validate import kernels_saturate
from tests.onnx_text import fill, name_nodes, parse

NETWORK = "c = Conv(image, w) r = Relu(c) d = Conv(r, v) e = Relu(d) p = GlobalAveragePool(e) y = Flatten(p)"
IMAGES = np.abs(np.random.default_rng(0).normal(size=(8, 3, 8, 8))).astype(np.float32) + 1


@pytest.mark.skipif(not kernels_saturate(), reason="needs a processor whose kernels saturate")
def test_they_are_warned_of_and_the_remedy_comes_first_and_works(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # of the plan with a reduced range
    model = name_nodes(fill(parse(NETWORK, outputs="float[N,5] y"), {"w": (8, 3, 3, 3), "v": (5, 8, 3, 3)}))
    for tensor in model.graph.initializer:
        weight = np.abs(onnx.numpy_helper.to_array(tensor))
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight / weight.max() * 0.1 + 0.1, tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    for reduced in (False, True):
        path = tmp_path / f"q{reduced}.onnx"
        made = pdq_export.quantize(
            model, bits="8/8", calib=IMAGES, method="nearest", device="cpu", reduce_range=reduced, output=path
        )
        caplog.clear()
        report = pdq_export.validate_models(tmp_path / "m.onnx", path, data=IMAGES)
        assert report.saturated_layers == made.report.saturated_layers
        if reduced:
            assert "saturate" not in caplog.text
            assert report.saturated_layers == ()
        else:
            assert report.loss is not None
            assert report.remedies[0].line == made.report.remedies[0].line == "--reduce-range"
            assert "on this processor its kernels saturate" in caplog.text
            assert "quantize with --reduce-range" in caplog.text
