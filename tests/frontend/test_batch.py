"""A model with a fixed batch size that cannot run at another is refused before calibration."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from pdq_export.errors import ModelError
from pdq_export.frontend import check_batch, import_model, import_network
from pdq_export.frontend.batch import find_images
from pdq_export.graph.passes import free_batch, tidy
from pdq_export.spec import Place


def checked(body: str, shapes: str, **constants: list) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> m {shapes} {{ {body} }}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
    model = onnx.shape_inference.infer_shapes(model)
    check_batch(import_model(free_batch.run(model)), model)


def test_models_that_run_at_any_batch_size() -> None:
    checked("y = Relu(x)", "(float[1,3] x) => (float[1,3] y)")
    checked("y = Reshape(x, s)", "(float[2,3,2] x) => (float[2,6] y)", s=[2, 6])
    checked("y = Reshape(x, s)", "(float[N,3,2] x) => (float[N,6] y)", s=[-1, 6])
    checked("y = Reshape(x, s)", "(float[1,3,H] x) => (float[1,K] y)", s=[1, -1])  # not known well enough to try


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("y = Concat <axis = 1> (x, c)", {"c": [[[1.0]], [[2.0]]]}, "does not run at 3 ("),
        ("y = Slice(x, a, b, a)", {"a": [0], "b": [2]}, "output 'y' keeps 2 images"),
    ],
)
def test_models_that_do_not(body: str, constants: dict[str, list], reason: str) -> None:
    arrays = {name: np.float32(value) if name == "c" else value for name, value in constants.items()}
    with pytest.raises(ModelError, match=r"its batch size is fixed at 2, .* export it with a dynamic batch axis") as e:
        checked(body, "(float[2,3,1] x) => (float[2,K,1] y)", **arrays)  # type: ignore[arg-type]
    assert reason in str(e.value)


def test_the_node_that_takes_images_apart_is_named_and_can_be_cut_off(tmp_path: Path) -> None:
    body = "g = Relu(x) p = GlobalAveragePool(g) a = Squeeze(p, k) y = MatMul(a, w)"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m (float[1,3,4,4] x) => (float[2] y) {{ {body} }}'
    )
    constants = {"k": np.array([0, 2, 3]), "w": np.ones((3, 2), np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in constants.items())
    for node in model.graph.node:
        node.name = f"the {node.op_type}"
    with pytest.raises(ModelError, match=r"node 'the Squeeze' \(Squeeze\) drops the axis of the images") as error:
        check_batch(import_network(tidy.infer_shapes(model)), model)
    (call,) = re.findall(r"onnx\.utils\.extract_model\(file, part, .*\)", str(error.value))
    file, part = str(tmp_path / "file.onnx"), str(tmp_path / "part.onnx")
    onnx.save(model, file)
    eval(call, {"onnx": onnx, "file": file, "part": part})
    rest = onnx.load(part)
    assert [value.name for value in rest.graph.output] == ["p"]
    check_batch(import_network(rest), rest)


def test_where_images_lie_with_any_batch_size() -> None:
    body = "t = Transpose <perm = [2, 0, 1]> (x) y = Relu(t)"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m (float[N,3,5] x) => (float[5,N,3] y) {{ {body} }}'
    )
    assert find_images(tidy.infer_shapes(model)) == {"t": Place(axis=1), "y": Place(axis=1)}


@pytest.mark.parametrize(("axis", "warns"), [(0, True), (1, False)])
def test_images_that_influence_each_other(axis: int, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    body = f"m = ReduceMean <axes = [{axis}]> (x) y = Sub(x, m)"
    checked(body, "(float[2,3,1] x) => (float[2,3,1] y)")
    assert ("output 'y': images that are run together influence each other" in caplog.text) == warns


def test_images_that_influence_each_other_by_their_averages_alone(caplog: pytest.LogCaptureFixture) -> None:
    body = "m = ReduceMean <axes = [0]> (x) d = Sub(x, m) s = ReduceMean <axes = [2]> (d) y = Squeeze(s, k)"
    checked(body, "(float[4,3,4096] x) => (float[4,3] y)", k=[2])
    assert "influence each other" in caplog.text


def test_outputs_that_cannot_be_compared() -> None:
    checked("y = Greater(x, t)", "(float[1,3] x) => (bool[1,3] y)", t=np.float32(0.5))
    checked("y = Slice(x, a, a, b)", "(float[1,3] x) => (float[1,0] y)", a=[0], b=[1])
    checked("t = Transpose <perm = [1, 0]> (x) y = MatMul(x, t)", "(float[2,3] x) => (float[2,2] y)")
    checked("i = Cast <to = 7> (x) y = Gather(t, i)", "(float[1,600] x) => (float[1,600] y)", t=np.float32([1, 2]))


def test_images_that_freeing_the_batch_would_mix_up() -> None:
    """Time first, with one image: its rows are not to follow each other."""
    body = "a = Reshape(x, s) b = Reshape(a, t) m = ReduceMean <axes = [0]> (b) c = Sub(b, m) y = Reshape(c, e)"
    with pytest.raises(ModelError, match="output 'y' mixes up the images"):
        checked(body, "(float[1,5,4] x) => (float[1,20] y)", s=[5, 4], t=[5, 1, 4], e=[1, 20])
