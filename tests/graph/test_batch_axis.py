"""Where the images of a fixed batch lie, held against onnxruntime on the same network for more of them."""

import numpy as np
import onnx
import pytest
import torch

from pdq_export.frontend import import_model
from pdq_export.graph.batch_axis import follow, reshaped
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import free_batch, tidy
from pdq_export.spec import Place

from .models import random, run

CONSTANTS = {
    "time": [4, 1, 6],
    "flat": [4, 6],
    "back": [4, 1, -1],
    "groups": [1, 2, -1],
    "shuffled": [1, 2, 3, 1, 4],
    "pixels": [1, 1, 2, 3, 1, 4],
    "whole": [1, 2, 3, 4],
    "first": [0],
    "rows": [2, 12],
}
W, R = random(1, 20, 6), random(1, 20, 5)
FREED = {
    "time first": "t = Transpose <perm = [3,0,1,2]> (x) y = Reshape(t, time)",
    "recurrent": "t = Transpose <perm = [3,0,1,2]> (x) a = Reshape(t, time) y, h = LSTM <hidden_size = 5> (a, w, r)",
    "initial states": "t = Transpose <perm = [3,0,1,2]> (x) a = Reshape(t, time)"
    " y, h = LSTM <hidden_size = 5> (a, w, r, , , state, state)",
    "a Linear on [T N, C]": "t = Transpose <perm = [3,0,1,2]> (x) a = Reshape(t, time) b = Reshape(a, flat)"
    " c = MatMul(b, m) y = Reshape(c, back)",
    "groups": "a = Reshape(x, groups) b = ReduceMean <axes = [2]> (a) c = Sub(a, b) y = Reshape(c, whole)",
    "channel shuffle": "a = Reshape(x, shuffled) b = Transpose <perm = [0,2,1,3,4]> (a) y = Reshape(b, whole)",
    "pixel shuffle": "a = Reshape(x, pixels) b = Transpose <perm = [0,3,4,1,5,2]> (a) y = Reshape(b, whole)",
    "a token along another axis": "t = Transpose <perm = [3,0,1,2]> (x) y = Concat <axis = 0> (t, token)",
    "rows of all": "a = Reshape(x, rows) b = Relu(a) y = Reshape(b, whole)",
    "a single image without its axis": "a = Squeeze(x, none) b = Unsqueeze(a, first) y = Relu(x)",
    "einsum": 'y = Einsum <equation = "nchw,nchv->hnwv"> (x, x)',
}
MIXED = {
    "a = Squeeze(x, first)": "drops the axis of the images",
    "a = ReduceMean <axes = [0]> (x)": "reduces the axis of the images",
    "i = Constant <value_int = 0> () a = Gather(x, i)": "takes some of the images",
    "t = Transpose <perm = [1,0,2,3]> (x) a = GlobalAveragePool(t)": "reads images along axis 0, where they lie along",
    "a = Softmax <axis = 0> (x)": "computes across images",
    "t = Transpose <perm = [1,0,2,3]> (x) a = Add(t, x)": "its operands have the images along different axes",
    'a = Einsum <equation = "nchw,ncvw->chv"> (x, x)': "sums over the images",
    "a = Concat <axis = 0> (x, x)": "computes across images",
}


def model(body: str, batch: int = 1, outputs: str = "y") -> onnx.ModelProto:
    text = f"m (float[{batch},2,3,4] x) => ({', '.join(f'float {name}' for name in outputs.split())})"
    result = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text} {{ {body} }}')
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    read = {name for node in result.graph.node for name in node.input}
    constants = {
        **{name: np.array(value) for name, value in CONSTANTS.items()},
        "none": np.array([], np.int64),
        "w": W,
        "r": R,
        "state": np.repeat(random(1, 1, 5), batch, axis=1),
        "m": random(6, 5),
        "token": np.repeat(random(1, 1, 2, 3), batch, axis=1),
    }
    result.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants.items() if name in read
    )
    for number, node in enumerate(result.graph.node):
        node.name = f"node{number}"
    return tidy.infer_shapes(result)


@pytest.mark.parametrize("case", FREED)
def test_several_images_give_what_each_gives_alone(case: str) -> None:
    fixed = model(FREED[case])
    place = follow(GraphIndex(fixed), 1).places["y"]
    x = random(5, 2, 3, 4)
    y = import_model(free_batch.run(fixed))(torch.from_numpy(x))[0].numpy()
    expected = [run(fixed, x=image[None])[0] for image in x]
    np.testing.assert_allclose(y, np.concatenate(expected, place.axis), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", MIXED)
def test_what_takes_images_apart_or_mixes_them_is_named(body: str) -> None:
    fixed = model(body, outputs="a")
    ((node, reason),) = follow(GraphIndex(fixed), 1).blockers.items()
    assert (node, reason[: len(MIXED[body])]) == (fixed.graph.node[-1].name, MIXED[body])


def test_a_constant_that_differs_from_image_to_image() -> None:
    fixed = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float[2,3] x) => (float[2,3] y) <float[2,1] c = {1, 2}, float[2,1] d = {1, 1}>
        { e = Add(x, d) y = Add(e, c) }"""
    )
    fixed.graph.node[1].name = "own"
    assert follow(GraphIndex(tidy.infer_shapes(fixed)), 2).blockers == {
        "own": "its constant 'c' differs from image to image"
    }


@pytest.mark.parametrize(
    ("place", "before", "after", "expected"),
    [
        (Place(axis=1), [16, 2, 5], [32, 5], Place(axis=0, outer=16)),
        (Place(axis=0, outer=16), [32, 5], [16, 2, 5], Place(axis=1)),
        (Place(axis=0), [2, 6, 5], [12, 5], Place(axis=0, inner=6)),
        (Place(axis=0), [2, 3, 5], [30], Place(axis=0, inner=15)),
        (Place(axis=1), [3, 2, 5], [30], Place(axis=0, outer=3, inner=5)),
        (Place(axis=1), [3, 2, 5], [10, 3], None),
    ],
)
def test_reshapes(place: Place, before: list[int], after: list[int], expected: Place | None) -> None:
    assert reshaped(place, before, after, 2) == expected
