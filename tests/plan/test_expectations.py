"""The means under a Softmax that detectors and keypoint networks end with."""

import numpy as np
import pytest

from pdq_export.commands.quantize import quantize
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths

from ..onnx_text import fill, name_nodes, parse

WEIGHTS = {"a": (4, 3, 3, 3), "b": (8, 4, 1, 1), "c": (4, 8, 1, 1), "ruler": (1, 8, 1, 1), "places": (64, 2)}
PAD = "<pads = [1, 1, 1, 1]>"
STEM = f"s = Conv {PAD} (image, a) r = Relu(s) t = Conv(r, b)"
DFL = f"{STEM} p = Softmax <axis = 1> (t) y = Conv(p, ruler)"
SOFT_ARGMAX = f"""{STEM} flat = Constant <value_ints = [0, 8, 64]> () m = Reshape(t, flat) p = Softmax <axis = 2> (m)
    y = MatMul(p, places)"""


@pytest.mark.parametrize("body", [DFL, SOFT_ARGMAX])
def test_what_precedes_the_softmax_is_the_last_layer(body: str) -> None:
    model = name_nodes(fill(parse(body, outputs="float[N,A,B,C] y" if body == DFL else "float[N,A,B] y"), WEIGHTS))
    plan = make_plan(prepare(model).model, PlanOptions.of(BitWidths(4, 4)))
    assert [layer.node for layer in plan.layers] == ["s", "t"]
    assert [plan.points[name].bits for name in ("image", "a", "r", "b")] == [8, 8, 8, 8]
    images = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)
    options = {"samples": 12, "iters": 4, "correction_iters": 0}
    result = quantize(model, calib=images, bits="4/4", reduce_range=True, options=options)
    reasons = {node["node"]: node["reason"] for node in result.report.floating}
    assert reasons["y"] == "a mean under the probabilities of a Softmax, no layer"
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 0.01


def test_a_softmax_in_front_of_more_layers_leaves_them_what_they_are() -> None:
    body = f"{STEM} p = Softmax <axis = 1> (t) u = Conv(p, c) v = Relu(u) y = Conv(v, b)"
    model = name_nodes(fill(parse(body, outputs="float[N,8,8,8] y"), WEIGHTS))
    plan = make_plan(prepare(model).model, PlanOptions.of(BitWidths(4, 4)))
    assert [layer.node for layer in plan.layers] == ["s", "t", "u", "y"]


def test_a_classifier_behind_a_softmax_is_a_layer() -> None:
    body = f"{STEM} p = Softmax <axis = 1> (t) y = Conv(p, c)"
    model = name_nodes(fill(parse(body, outputs="float[N,4,8,8] y"), WEIGHTS))
    plan = make_plan(prepare(model).model, PlanOptions.of(BitWidths(4, 4)))
    assert [layer.node for layer in plan.layers] == ["s", "t", "y"]
