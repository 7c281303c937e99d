"""Where the prediction difference is measured."""

import logging
from collections.abc import Mapping, Sequence

import onnx
import pytest
import torch

from pdq_export.calibrate.prediction import Prediction, find_predictions, images_first, put_images_first
from pdq_export.calibrate.subgraph import extract
from pdq_export.frontend import import_model
from pdq_export.spec import OutputPart, Place


def found(
    body: str, outputs: str, parts: Mapping[str, Sequence[OutputPart]] | None = None
) -> dict[str, list[Prediction]]:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m (float[N,4] x) => ({outputs}) {{ {body} }}'
    )
    return find_predictions(import_model(model), [torch.zeros(1, 4)], parts or {})


def test_scores_are_what_a_softmax_or_an_arg_max_was_applied_to(caplog: pytest.LogCaptureFixture) -> None:
    body = "l = Tanh(x)  y = Softmax <axis = 1> (l)  i = ArgMax <axis = 1, keepdims = 0> (l)  z = Identity(l)"
    assert found(body, "float[N,4] y, int64[N] i, float[N,4] z") == {
        "y": [Prediction("l", 1)],
        "i": [Prediction("l", 1)],
        "z": [Prediction("l", None)],
    }
    assert not caplog.records


def test_heads_are_found_by_the_operator_in_every_version_of_it() -> None:
    text = """<ir_version: 8, opset_import: ["": 11]> m (float[N,4] x) => (float[N,4] y, float[N,4] z, int64[N,1] i)
        { l = Tanh(x)  y = Softmax <axis = 1> (l)  z = LogSoftmax <axis = 1> (l)  f = Cast <to = 11> (l)
          i = ArgMin <axis = 1> (f) }"""
    network = import_model(onnx.parser.parse_model(text))
    assert find_predictions(network, [torch.zeros(1, 4)], {}) == {name: [Prediction("l", 1)] for name in "yzi"}


def test_the_last_points_that_can_be_differentiated(caplog: pytest.LogCaptureFixture) -> None:
    body = """a = Tanh(x)  b = Sigmoid(x)  m = Greater(a, b)  y = Cast <to = 1> (m)
              k = Constant <value_ints = [2]> ()  values, places = TopK <axis = 1> (a, k)"""
    with caplog.at_level(logging.WARNING):
        result = found(body, "float[N,4] y, float[N,2] values, int64[N,2] places")
    assert result == {
        "y": [Prediction("a", None), Prediction("b", None)],
        "values": [Prediction("values", None)],
        "places": [Prediction("a", None)],
    }
    assert [record.args[:2] for record in caplog.records] == [("y", "'a' and 'b'"), ("places", "'a'")]


def test_an_output_that_does_not_depend_on_the_image(caplog: pytest.LogCaptureFixture) -> None:
    body = "y = Tanh(x)  s = Shape(x)  c = Constant <value_float = 1.0> ()"
    assert found(body, "float[N,4] y, int64[2] s, float c") == {"y": [Prediction("y", None)], "s": [], "c": []}
    assert not caplog.records


def test_the_parts_of_an_output_are_predictions_of_their_own() -> None:
    body = """h = Relu(x) b = Exp(h) s = Sigmoid(h) p = Softmax <axis = 1> (x) j = Concat <axis = 1> (b, s, p)
        y = Identity(j)"""
    parts = [OutputPart(tensor=name, axis=1, start=4 * k, stop=4 * k + 4) for k, name in enumerate("bsp")]
    assert found(body, "float[N,12] y", {"y": parts}) == {
        "y": [Prediction("b", None), Prediction("s", 0), Prediction("x", 1)]
    }
    assert found(body, "float[N,12] y") == {"y": [Prediction("j", None)]}


def test_images_come_first() -> None:
    """Scores [T, N, K] of a recogniser, and the same of [T N, K], one image after the other."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float[N,4,3] x) => (float[3,N,4] y) { t = Transpose <perm = [2, 0, 1]> (x) y = Softmax <axis = 2> (t) }"""
    )
    network = import_model(model)
    network.meta["images"] = {"t": Place(axis=1), "y": Place(axis=1)}
    (prediction,) = find_predictions(network, [torch.zeros(1, 4, 3)], {})["y"]
    moved = put_images_first(network, prediction)
    assert moved == Prediction("t.images_first", 2) == put_images_first(network, prediction)
    x = torch.randn(5, 4, 3)
    (scores,) = extract(network, ["x"], [moved.tensor])(x)
    assert torch.equal(scores, x.transpose(1, 2))
    assert torch.equal(images_first(scores.transpose(0, 1).reshape(15, 4), 0, 3, 1), scores)
    assert torch.equal(images_first(x.reshape(20, 3), 0, 1, 4), x)
