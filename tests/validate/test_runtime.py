import numpy as np
import onnx
import pytest

from pdq_export.errors import ValidationError
from pdq_export.validate import Session, check_loads, count_kernels

CONV = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,4,4] x) => (float[N,3,4,4] y, float[N,3,4,4] z)'


@pytest.fixture
def model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(f"{CONV} {{ y = conv: Conv (x, w) z = Relu(y) }}".replace("conv: ", ""))
    model.graph.node[0].name = "conv"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 2, 1, 1), np.float32), "w"))
    return model


def test_runs_bytes_and_paths(model, tmp_path):
    x = np.ones((2, 2, 4, 4), np.float32)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    for source in (model.SerializeToString(), path, str(path)):
        session = Session(source, threads=1)
        assert (session.inputs, session.outputs) == (("x",), ("y", "z"))
        first, second = session.run(x)
        assert (first == 2).all()
        assert (second == 2).all()


def test_batches_stream(model):
    drawn = []

    def batches():
        for size in (1, 3, 2):
            drawn.append(size)
            yield np.zeros((size, 2, 4, 4), np.float32)

    results = Session(model.SerializeToString()).run_batches(batches())
    assert next(results)[0].shape == (1, 3, 4, 4)
    assert drawn == [1]
    assert [len(first) for first, _ in results] == [3, 2]


def test_what_onnxruntime_refuses_is_one_short_line(model, tmp_path):
    model.graph.node[0].op_type = "NoSuchOperator"
    for source in (model.SerializeToString(), b"not a model"):
        with pytest.raises(ValidationError, match=r"onnxruntime .* does not load the model: .*") as caught:
            Session(source)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    with pytest.raises(ValidationError, match="does not load the model"):
        check_loads(model)
    with pytest.raises(ValidationError, match=r"does not load '.*missing\.onnx'"):
        Session(tmp_path / "missing.onnx")


def test_a_batch_that_does_not_fit(model):
    with pytest.raises(ValidationError, match=r"batch of shape \[1, 5, 4, 4\]"):
        Session(model.SerializeToString()).run(np.zeros((1, 5, 4, 4), np.float32))


def test_float_kernels_are_counted_and_named(model):
    kernels = count_kernels(model.SerializeToString())
    assert not kernels.all_integer
    assert sum(kernels.floating.values()) == 1
    assert len(kernels.floating_nodes) == 1
    assert kernels.floating_nodes[0]
    assert kernels.integer == {}
