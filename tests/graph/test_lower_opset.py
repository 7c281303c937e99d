"""An older opset by declaration."""

import numpy as np
import onnx

from pdq_export.graph.passes import lower_opset

from .models import run

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x) => (float[2,3] y) { h = Relu(x)  y = Add(h, h) }"""


def test_results_stay() -> None:
    model = onnx.parser.parse_model(TEXT)
    x = np.linspace(-5, 5, 6, dtype=np.float32).reshape(2, 3)
    before = run(model, x=x)
    lowered = lower_opset.run(model, 13)
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.opset_import[0].version == 13
    assert (np.asarray(run(lowered, x=x)) == np.asarray(before)).all()
