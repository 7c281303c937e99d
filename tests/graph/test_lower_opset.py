"""An older opset by declaration, HardSwish by its definition."""

import numpy as np
import onnx

from pdq_export.graph.passes import lower_opset

from .models import run

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x) => (float[2,3] y) {
    h_gate = Relu(x)
    h = HardSwish(h_gate)
    y = Add(h, h_gate)
}"""


def test_results_stay() -> None:
    model = onnx.parser.parse_model(TEXT)
    for position, node in enumerate(model.graph.node):
        node.name = f"n{position}"
    x = np.linspace(-5, 5, 6, dtype=np.float32).reshape(2, 3)
    before = run(model, x=x)
    lowered = lower_opset.run(model, 13)
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.opset_import[0].version == 13
    assert [node.op_type for node in lowered.graph.node] == ["Relu", "HardSigmoid", "Mul", "Add"]
    assert (np.asarray(run(lowered, x=x)) == np.asarray(before)).all()


def test_an_opset_that_knows_hard_swish() -> None:
    model = lower_opset.run(onnx.parser.parse_model(TEXT), 14)
    assert [node.op_type for node in model.graph.node] == ["Relu", "HardSwish", "Add"]
