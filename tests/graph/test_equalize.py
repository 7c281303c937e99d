"""Channels before a depthwise Conv: which couples of layers there are, and that the network stays what it was."""

import numpy as np
import onnx
import onnx.reference
import pytest

from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import equalize
from pdq_export.spec import ChannelStatistics

from ..onnx_text import fill, name_nodes, parse
from .models import assert_same, random

PAD = "pads = [1, 1, 1, 1]"
DEPTHWISE = f"d = Conv <{PAD}, group = 4> (r, depth)"
BEGINNING = f"c = Conv <{PAD}> (image, w, b) r = Relu(c) {DEPTHWISE}"
CHAIN = f"{BEGINNING} y = Relu(d)"
SHAPES = {
    "w": (4, 3, 3, 3),
    "b": (4,),
    "depth": (4, 1, 3, 3),
    "twice": (8, 1, 3, 3),
    "up": (3, 4, 2, 2),
    "point": (4, 4, 1, 1),
    "apart": (4, 1, 2, 2),
    "pairwise": (4, 2, 3, 3),
}
FACTOR = np.array([1.0, 3.0, 0.25, 10.0])


def build(body: str, outputs: str = "float[N,C,H,W] y") -> onnx.ModelProto:
    return name_nodes(fill(parse(body, outputs=outputs), SHAPES))


def couples_of(model: onnx.ModelProto, tensors: set[str]) -> list[equalize.Couple]:
    return equalize.find_couples(model, tensors, {node.name for node in model.graph.node})


@pytest.mark.parametrize(
    "body",
    [
        CHAIN,
        f"c = Conv(image, w, b) a = Relu(c) r = LeakyRelu <alpha = 0.2> (a) {DEPTHWISE} y = Relu(d)",
        f"r = Conv <{PAD}> (image, w) {DEPTHWISE} y = Relu(d)",
        f"c = ConvTranspose <strides = [2, 2]> (image, up, b) r = Relu(c) {DEPTHWISE} y = Relu(d)",
        f"c = Conv <{PAD}> (image, w, b) r = Relu(c) y = Conv <{PAD}, group = 4> (r, twice)",
    ],
)
def test_factors_change_the_tensor_and_not_the_network(body: str) -> None:
    model = build(body)
    before = model.SerializeToString()
    (couple,) = couples_of(model, {"r"})
    assert (couple.tensor, couple.writer, couple.reader) == ("r", model.graph.node[0].name, couple.reader)
    result, _ = equalize.run(model, {}, [couple], {"r": FACTOR})
    assert model.SerializeToString() == before
    image = random(2, 3, 8, 8)
    assert_same(model, result, image=image)
    for changed in (model, result):
        changed.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
    values = [onnx.reference.ReferenceEvaluator(m).run(["r"], {"image": image})[0] for m in (model, result)]
    np.testing.assert_allclose(values[1], values[0] * FACTOR.reshape(-1, 1, 1), rtol=1e-4, atol=1e-5)


def clipped(body: str = f"c = Conv <{PAD}> (image, w, b) r = Clip(c, low, high) {DEPTHWISE} y = Relu(d)",
            low: float = 0.0, high: float = 0.5) -> onnx.ModelProto:  # fmt: skip
    model = build(body)
    for name, value in (("low", low), ("high", high)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    return model


def test_a_clip_stays_and_its_channels_end_apart() -> None:
    model = clipped()
    (couple,) = couples_of(model, {"r"})
    assert (couple.writer, couple.reader, couple.bound) == ("c", "d", 0.5)
    factor = np.array([1.0, 3.0, 1.5, 10.0])
    result, _ = equalize.run(model, {}, [couple], {"r": factor})
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]
    image = random(2, 3, 8, 8)
    exact = equalize.exact(result, [couple], {"r": factor})
    assert_same(model, exact, image=image)
    values = []
    for changed in (model, exact, result):
        changed.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
        values.append(onnx.reference.ReferenceEvaluator(changed).run(["r"], {"image": image})[0])
    np.testing.assert_allclose(values[1], values[0] * factor.reshape(-1, 1, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values[2], np.minimum(values[1], np.float32(0.5)))  # as integers up to 0.5 have it


@pytest.mark.parametrize(("low", "high"), [(-1.0, 6.0), (0.1, 6.0), (0.0, np.inf)])
def test_other_clips_are_left_alone(low: float, high: float) -> None:
    assert couples_of(clipped(low=low, high=high), {"r"}) == []


def test_a_clip_that_others_read_is_left_alone() -> None:
    assert couples_of(clipped(f"c = Conv <{PAD}> (image, w, b) r = Clip(c, low, high) {DEPTHWISE} y = Add(d, r)"),
                      {"r"}) == []  # fmt: skip


def test_one_layer_after_the_other() -> None:
    model = build(f"{BEGINNING} e = Relu(d) y = Conv <{PAD}, group = 4> (e, other)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(4, 1, 3, 3), "other"))
    couples = couples_of(model, {"r", "e"})
    assert [(couple.tensor, couple.writer) for couple in couples] == [("r", "c"), ("e", "d")]
    result, _ = equalize.run(model, {}, couples, {"r": FACTOR, "e": FACTOR[::-1].copy()})
    assert_same(model, result, image=random(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("c = Conv(image, w, b) r = Relu(c) d = Conv(r, point) y = Relu(d)", "float[N,C,H,W] y"),
        ("c = Conv(image, w, b) r = Relu(c) d = Conv <group = 2> (r, pairwise) y = Relu(d)", "float[N,C,H,W] y"),
        (f"six = Constant <value_float = 6.0> () c = Conv(image, w, b) r = Clip(c, , six) {DEPTHWISE} y = Relu(d)",
         "float[N,C,H,W] y"),
        (f"c = Conv(image, w, b) r = Sigmoid(c) {DEPTHWISE} y = Relu(d)", "float[N,C,H,W] y"),
        (f"c = Conv <{PAD}> (image, w, b) r = Relu(c) {DEPTHWISE} y = Add(d, r)", "float[N,C,H,W] y"),
        (CHAIN, "float[N,C,H,W] y, float[N,C,H,W] c"),
        (CHAIN, "float[N,C,H,W] y, float[N,C,H,W] r"),
        (CHAIN, "float[N,C,H,W] y, float[4,1,3,3] depth"),
        (f"s = Conv(image, w, b) t = Relu(s) c = ConvTranspose <group = 4> (t, apart) r = Relu(c) {DEPTHWISE} "
         "y = Relu(d)", "float[N,C,H,W] y"),
        (f"{CHAIN} z = Conv(image, w)", "float[N,C,H,W] y, float[N,C,H,W] z"),
        (f"{CHAIN} z = Conv <group = 4> (y, depth)", "float[N,C,H,W] z"),
        (CHAIN.replace("Conv <pads = [1, 1, 1, 1]> (image, w, b)", "Conv(image, v, b)"), "float[N,C,H,W] y"),
    ],
)  # fmt: skip
def test_what_is_left_alone(body: str, outputs: str) -> None:
    model = build(body, outputs)
    if any("v" in node.input for node in model.graph.node):  # a weight that is computed
        model.graph.node.insert(0, onnx.helper.make_node("Identity", ["w"], ["v"], "v"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(4, 3, 3, 3), "w"))
    assert couples_of(model, set(GraphIndex(model).producer)) == []


def test_only_wanted_tensors_and_layers() -> None:
    model = build(CHAIN)
    assert couples_of(model, {"d"}) == []
    assert equalize.find_couples(model, {"r"}, {"c"}) == equalize.find_couples(model, {"r"}, {"d"}) == []


def test_statistics_go_along() -> None:
    model = build(CHAIN)
    known = ChannelStatistics(mean=random(4), std=np.abs(random(4)), gain=np.abs(random(4)))
    _, statistics = equalize.run(model, {"c": known, "d": known}, couples_of(model, {"r"}), {"r": FACTOR})
    assert statistics["d"] is known
    np.testing.assert_allclose(statistics["c"].mean, known.mean * FACTOR, rtol=1e-6)
    np.testing.assert_allclose(statistics["c"].std, known.std * FACTOR, rtol=1e-6)
    np.testing.assert_allclose(statistics["c"].gain, known.gain / FACTOR, rtol=1e-6)
