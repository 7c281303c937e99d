"""What an output holds side by side, on small graphs written out as ONNX text."""

import numpy as np
import pytest

from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths, OutputPart

from ..onnx_text import fill, parse

WEIGHTS = {"a": (4, 3, 1, 1), "b": (6, 3, 1, 1), "wide1": (12, 3, 1, 1), "wide2": (12, 3, 1, 1)}
IMAGE = "float[N,3,4,4] image"
FLAT = "Constant <value_ints = [0, -1, 16]> ()"
BOXES = f"ca = Conv(image, a) fa = {FLAT} boxes = Reshape(ca, fa)"
SCORES = f"cb = Conv(image, b) fb = {FLAT} raw = Reshape(cb, fb) scores = Sigmoid(raw)"


def parts(body: str, outputs: str = "float[N,C,A] y") -> dict[str, list[tuple[str, int, int, int]]]:
    """By output: tensor, axis, start and stop of each part."""
    model = prepare(fill(parse(body, IMAGE, outputs), WEIGHTS)).model
    found = make_plan(model, PlanOptions.of(BitWidths(4, 4))).parts
    return {name: [(p.tensor, p.axis, p.start, p.stop) for p in every] for name, every in found.items()}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Concat <axis = 1> (boxes, scores)", [("boxes", 1, 0, 4), ("scores", 1, 4, 10)]),
        ("y = Concat <axis = -2> (boxes, scores)", [("boxes", 1, 0, 4), ("scores", 1, 4, 10)]),
        ("j = Concat <axis = 1> (boxes, scores) y = Transpose <perm = [0, 2, 1]> (j)",
         [("boxes", 2, 0, 4), ("scores", 2, 4, 10)]),
        ("j = Concat <axis = 1> (boxes, scores) s = Constant <value_float = 8.0> () y = Mul(j, s)",
         [("boxes", 1, 0, 4), ("scores", 1, 4, 10)]),
    ],
)  # fmt: skip
def test_boxes_and_scores_are_parts(body: str, expected: list[tuple[str, int, int, int]]) -> None:
    assert parts(f"{BOXES} {SCORES} {body}") == {"y": expected}


def test_levels_of_a_pyramid_are_no_parts_but_what_each_of_them_holds_is() -> None:
    """As in YOLOv5: per level [N, 3, H, W, 4] cut, computed and joined, then [N, 3 H W, 4], then all levels."""
    level = """c{0} = Conv(image, wide{0}) five = Constant <value_ints = [0, 3, 4, 4, 4]> () r{0} = Reshape(c{0}, five)
        t{0} = Transpose <perm = [0, 1, 3, 4, 2]> (r{0}) sizes = Constant <value_ints = [1, 3]> ()
        u{0}, v{0} = Split <axis = 4> (t{0}, sizes) two = Constant <value_float = 2.0> () m{0} = Mul(u{0}, two)
        k{0} = Concat <axis = 4> (m{0}, v{0}) three = Constant <value_ints = [0, -1, 4]> ()
        f{0} = Reshape(k{0}, three)"""
    first, second = (level.format(k).replace("five", f"five{k}").replace("two", f"two{k}") for k in (1, 2))
    second = second.replace("three", "three2").replace("sizes", "sizes2")
    found = parts(f"{first} {second} y = Concat <axis = 1> (f1, f2)")
    assert found == {"y": [("m1", 2, 0, 1), ("v1", 2, 1, 4), ("m2", 2, 0, 1), ("v2", 2, 1, 4)]}


def test_most_outputs_have_no_parts() -> None:
    assert parts(f"{BOXES} y = Relu(boxes)") == {}
    levels = f"{BOXES} ca2 = Conv(image, a) flat2 = Constant <value_ints = [0, 4, 16]> () d = Reshape(ca2, flat2)"
    assert parts(f"{levels} y = Concat <axis = 2> (boxes, d)") == {}
    assert parts(f"{BOXES} one = Constant <value_floats = [1.0]> () y = Concat <axis = 0> (boxes, boxes)") == {}


def test_a_part_is_a_slice_of_its_output() -> None:
    part = OutputPart(tensor="scores", axis=1, start=4, stop=10)
    assert part.name("detections") == "detections[:, 4:10]"
    values = np.arange(2 * 10 * 3).reshape(2, 10, 3)
    np.testing.assert_array_equal(part.of(values), values[:, 4:10])
    np.testing.assert_array_equal(part.at(2).of(values.transpose(0, 2, 1)), values.transpose(0, 2, 1)[:, :, 4:10])


def test_a_transpose_that_reverses_all_axes_is_followed() -> None:
    body = (
        "ca = Conv(image, a) ta = Transpose(ca) cb = Conv(image, b) tb = Transpose(cb) y = Concat <axis = 2> (ta, tb)"
    )
    assert parts(body, "float[A,B,C,N] y") == {"y": [("ta", 2, 0, 4), ("tb", 2, 4, 10)]}
