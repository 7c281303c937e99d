"""`pdq-export compare`: what is printed, as a table and as JSON, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from pdq_export.cli import app

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,8] x) => (float[N,4] scores) {
    [first] hidden = MatMul(x, w)
    [bound] bounded = Relu(hidden)
    [last] scores = MatMul(bounded, v)
}"""
RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal(size, dtype=np.float32) for name, size in (("w", (8, 6)), ("v", (6, 4)))}


def model(**changed: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(TEXT)
    made.graph.initializer.extend(numpy_helper.from_array(x, name) for name, x in {**WEIGHTS, **changed}.items())
    return made


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with an FP32 file, another one with coarse weights in one layer, and data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "model.onnx")
    onnx.save(model(w=np.round(WEIGHTS["w"])), "coarse.onnx")
    np.savez("test.npz", x=RNG.standard_normal((20, 8), dtype=np.float32))


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", "model.onnx", "coarse.onnx", *arguments])


def test_the_table_names_the_layer_and_what_would_help() -> None:
    result = compare("--data", "test.npz")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("20 images of test.npz")
    rows = [line.split() for line in lines if "MatMul" in line]
    assert [row[0] for row in rows] == ["first", "last"]
    assert lines[-1] == "  --exclude '^first$'  (+0 bytes; about 100 % of the error)"


def test_json_has_both_parts_of_the_error() -> None:
    result = compare("--data", "test.npz", "--json", "--samples", "10", "--batch-size", "10")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["images"] == 10
    first, last = found["tensors"]
    assert first["layers"] == ["first"]
    assert first["handed_on_db"] is None  # nothing before it is quantized
    assert first["own_db"] == first["sqnr_db"]
    assert last["own_db"] is None  # all of its error is handed on
    assert last["handed_on_db"] == last["sqnr_db"]
    assert first["output_db"] == pytest.approx(last["sqnr_db"])  # it is the only layer that differs


def test_tensors_that_are_no_floats_are_left_alone() -> None:
    text = TEXT.replace("[last]", "sizes = Shape(bounded)\n    best = ArgMax<axis = 1>(bounded)\n    [last]")
    for name, weights in (("model.onnx", {}), ("coarse.onnx", {"w": np.round(WEIGHTS["w"])})):
        made = onnx.parser.parse_model(text)
        tensors = {**WEIGHTS, **weights}
        made.graph.initializer.extend(numpy_helper.from_array(x, key) for key, x in tensors.items())
        onnx.save(made, name)
    result = compare("--data", "test.npz", "--json")
    assert result.exit_code == 0, result.output
    assert [row["tensor"] for row in json.loads(result.stdout)["tensors"]] == ["bounded", "scores"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "none.npz"), "none.npz"),
        ((), "Missing option '--data'"),
        (("--data", "test.npz", "--samples", "0"), "--samples 0: expected a whole number, 1 or more"),
        (("--data", "test.npz", "--batch-size", "0"), "--batch-size 0: expected a whole number, 1 or more"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    result = compare(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert sum(line.startswith("pdq-export: error:") for line in result.stderr.splitlines()) == 1
