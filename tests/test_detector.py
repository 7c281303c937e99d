"""A detector of 64 convolutions: its blocks, and what is told of its boxes and scores."""

import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pdq_export.commands.quantize import quantize
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.blocks import MAX_LAYERS
from pdq_export.spec import BitWidths, Plan

from .detector import CLASSES, detector
from .onnx_text import fill, parse


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return detector(size=32)


@pytest.fixture(scope="module")
def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    return prepare(model).model


@pytest.fixture(scope="module")
def plan(prepared: onnx.ModelProto) -> Plan:
    return make_plan(prepared, PlanOptions.of(BitWidths(4, 4)))


def test_neck_and_head_are_cut_into_units(plan: Plan) -> None:
    sizes = [len(block.layers) for block in plan.blocks]
    assert sum(sizes) == len(plan.layers) == 63  # the mean over the bins of distances is no layer
    assert max(sizes) == MAX_LAYERS
    assert sizes[-4:] == 4 * [MAX_LAYERS]  # layers that learn together: neck and head are no chain of single ones
    assert len(sizes) == 14


def test_bottlenecks_stay_whole(plan: Plan) -> None:
    """Every C2f's bottlenecks, between its Split and its Concat, beside however many skips."""
    blocks = [{layer.node for layer in block.layers} for block in plan.blocks]
    inner = [layer.node for layer in plan.layers if "/m." in layer.node]
    for unit in {node.split("/m.")[0] for node in inner}:
        assert any(block.issuperset(node for node in inner if node.startswith(f"{unit}/m.")) for block in blocks)


def test_what_blocks_read_has_been_computed_and_has_a_row_an_image(prepared: onnx.ModelProto, plan: Plan) -> None:
    index, known = GraphIndex(prepared), {"image"}
    for block in plan.blocks:
        assert known.issuperset(block.inputs)
        known.update(block.outputs)
        assert all((index.shape(name) or "?")[0] == "N" for name in (*block.inputs, *block.outputs))


def test_the_last_convolutions_of_all_heads_have_8_bits(plan: Plan) -> None:
    last = [layer for layer in plan.layers if "/boxes" in layer.node or "/classes" in layer.node]
    last = [layer for layer in last if layer.node.endswith(".2/Conv") and layer.node.count("/") == 3]
    assert len(last) == 6
    for layer in last:
        assert plan.points[layer.weight].bits == 8
        assert plan.points[plan.source(layer.input) or ""].bits == 8


def test_lost_scores_are_told_though_the_whole_output_is_well(
    model: onnx.ModelProto, short_search: None, caplog: pytest.LogCaptureFixture
) -> None:
    images = np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        result = quantize(model, calib=images, bits="4/3", method="nearest", options={"samples": 16})
    boxes, scores = result.report.parts
    assert (boxes.name, scores.name) == ("detections[:, 0:4]", f"detections[:, 4:{4 + CLASSES}]")
    expected, found = (
        ort.InferenceSession(m.SerializeToString()).run(None, {"image": images})[0] for m in (model, result.model)
    )
    for part, where in ((boxes, slice(0, 4)), (scores, slice(4, None))):
        error = np.linalg.norm(found[:, where] - expected[:, where]) / np.linalg.norm(expected[:, where])
        assert part.quantized_float.relative_error == pytest.approx(error, rel=1e-3)
    assert scores.quantized_float.relative_error > 0.5
    assert result.report.outputs[0].quantized_float.relative_error < 0.3
    assert [m for m in caplog.messages if "its part detections[:, 4:10]" in m]
    assert not [m for m in caplog.messages if "detections[:, 0:4]" in m]
    assert result.report.to_dict()["parts"][1]["output"] == "detections"


SMALL = """s = Conv <pads = [1, 1, 1, 1]> (image, stem) r = Relu(s) b = Conv(r, box)
    flat = Constant <value_ints = [0, -1, 64]> () boxes = Reshape(b, flat)
    c = Conv(r, class) flat2 = Constant <value_ints = [0, 6, 64]> ()
    raw = Reshape(c, flat2)
    scores = Sigmoid(raw) y = Concat <axis = 1> (boxes, scores)"""


def test_the_prediction_is_measured_at_boxes_and_scores() -> None:
    weights = {"stem": (4, 3, 3, 3), "box": (4, 4, 1, 1), "class": (6, 4, 1, 1)}
    model = fill(parse(SMALL, outputs="float[N,C,A] y"), weights)
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    options = {"samples": 8, "iters": 4, "correction_iters": 0, "batch_size": 4}
    result = quantize(model, calib=images, bits="8/8", options=options)
    assert result.report.predictions == {"y": ["boxes", "scores"]}
    assert [part.name for part in result.report.parts] == ["y[:, 0:4]", "y[:, 4:10]"]
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.relative_error < 0.02
