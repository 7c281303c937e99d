"""Axis 0 keeps the batch's name where sizes are computed."""

import pytest

from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import tidy

from ..onnx_text import parse

TWICE = '<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
FACTORS = "scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()"
SIZES = """size = Shape(image) floats = Cast <to = 1> (size) half = Constant <value_float = 0.5> ()
    less = Mul(floats, half) sizes = Cast <to = 7> (less)"""


@pytest.mark.parametrize(
    ("body", "batch"),
    [
        (f"{FACTORS} y = Resize {TWICE} (image, , scales)", "N"),
        (f"{SIZES} y = Resize {TWICE} (image, , , sizes)", "N"),
        (f"{FACTORS} up = Resize {TWICE} (image, , scales) y = Relu(up)", "N"),
        (f"{SIZES} up = Resize {TWICE} (image, , , sizes) small = Relu(up) y = Add(small, up)", "N"),
        (f"{SIZES} up = Resize {TWICE} (image, , , sizes) y = Concat <axis = 1> (up, up)", "N"),
        (f"{SIZES} both = Concat <axis = 0> (sizes, sizes) y = Pad(image, both)", "N"),
        ("shape = Constant <value_ints = [-1, 3, 4, 4]> () y = Reshape(image, shape)", "other"),  # four of one image
    ],
)
def test_the_batch_is_known_behind(body: str, batch: str) -> None:
    model = parse(body, "float[N,3,8,8] image", "float[A,B,C,D] y")
    index = GraphIndex(tidy.infer_shapes(_with_inner_result(model)))
    shape = index.shape("y")
    assert shape is not None
    assert (shape[0] == "N") == (batch == "N")


@pytest.mark.parametrize("image", ["float[2,3,8,8] image", "float[?,3,8,8] image"])
def test_a_batch_of_a_fixed_size_or_without_a_name(image: str) -> None:
    model = parse(f"{SIZES} y = Resize {TWICE} (image, , , sizes)", image, "float[A,B,C,D] y")
    shape = GraphIndex(tidy.infer_shapes(_with_inner_result(model))).shape("y")
    assert shape is not None
    assert shape[0] == (2 if "2," in image else "image.shape[0]")


def _with_inner_result(model):  # type: ignore[no-untyped-def]
    """With an Identity behind ``y``, as outputs keep the shape that they declare."""
    (output,) = model.graph.output
    output.name = "end"
    node = model.graph.node.add()
    node.op_type = "Identity"
    node.input.append("y")
    node.output.append("end")
    return model
