"""Files in fresh processes: what is asked arrives there, and what goes wrong comes back. No figure is judged."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from pdq_export.errors import ValidationError
from pdq_export.validate.fresh import measure_fresh

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3] file, int64[N] "a/b") => (float[N,3] y) { c = Cast <to = 1> ("a/b") d = Unsqueeze(c, one)
y = Add(file, d) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = onnx.parser.parse_model(TEXT.replace('"a/b"', "ab"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    for value in (made.graph.input[1], made.graph.node[0]):
        if isinstance(value, onnx.NodeProto):
            value.input[0] = "a/b"
        else:
            value.name = "a/b"
    onnx.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def feed(count: int = 2) -> dict[str, np.ndarray]:
    return {"file": np.zeros((count, 3), np.float32), "a/b": np.ones(count, np.int64)}


def test_loaded_and_run(model: Path) -> None:
    """Whatever inputs are called."""
    import onnxruntime

    found = measure_fresh(model, feed=feed(), threads=2, config={"session.intra_op.allow_spinning": "0"})
    assert found.onnxruntime == onnxruntime.__version__
    assert found.cpu > 0
    assert found.wall > 0
    if sys.platform == "linux" and found.load_peak is not None:
        assert found.peak is not None
        assert found.peak >= found.load_peak


def test_loaded_alone(model: Path) -> None:
    assert measure_fresh(model).peak is None


def test_what_it_said_last(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"model\.onnx: fails in a fresh process: .*a/b"):
        measure_fresh(model, feed={"file": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValidationError, match=r"none\.onnx: fails in a fresh process: .*exist"):
        measure_fresh(tmp_path / "none.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_process_that_is_killed(model: Path) -> None:
    with pytest.raises(ValidationError, match="ended by signal 9, as where memory runs out"):
        measure_fresh(model, python=["sh", "-c", "kill -9 $$"])


def test_modules_beside_it_and_in_the_current_folder_are_left_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert measure_fresh(model).cpu > 0
