"""The embedded example model and data are well formed and reach the documented FP32 accuracy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

import pdq_export.calib_data as calib_data

SIZES = {"calib.npz": 1024, "eval.npz": 10_000}
NUM_CLASSES = 10

Arrays = dict[str, npt.NDArray[Any]]


def load(name: str) -> Arrays:
    with np.load(calib_data.path(name)) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(calib_data.path("fashion_resnet.onnx"))


@pytest.mark.parametrize("name", SIZES)
def test_arrays(name: str) -> None:
    arrays = load(name)
    assert set(arrays) == {"images", "labels", "mean", "std"}
    assert arrays["images"].shape == (SIZES[name], 1, 28, 28)
    assert arrays["images"].dtype == np.uint8
    assert arrays["labels"].shape == (SIZES[name],)
    assert arrays["labels"].dtype == np.uint8
    for key in ("mean", "std"):
        assert arrays[key].shape == (1,)
        assert arrays[key].dtype == np.float32


@pytest.mark.parametrize("name", SIZES)
def test_classes_are_balanced(name: str) -> None:
    counts = np.bincount(load(name)["labels"], minlength=NUM_CLASSES)
    assert len(counts) == NUM_CLASSES
    assert counts.max() - counts.min() <= 1


def test_splits_share_normalization() -> None:
    calib, evaluation = load("calib.npz"), load("eval.npz")
    for key in ("mean", "std"):
        np.testing.assert_array_equal(calib[key], evaluation[key])


def test_splits_are_disjoint() -> None:
    calib, evaluation = ({image.tobytes() for image in load(name)["images"]} for name in SIZES)
    assert len(calib) == SIZES["calib.npz"]  # no image twice
    assert not calib & evaluation


def test_unknown_file() -> None:
    with pytest.raises(FileNotFoundError):
        calib_data.path("missing.npz")


def test_model_is_valid_and_small(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert calib_data.path("fashion_resnet.onnx").stat().st_size < 2_000_000


def test_model_keeps_batch_norm_in_inference_form(model: onnx.ModelProto) -> None:
    counts = Counter(node.op_type for node in model.graph.node)
    # PD-Quant's distribution correction needs one BatchNormalization after every convolution.
    assert counts["BatchNormalization"] == counts["Conv"] > 0
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            assert len(node.output) == 1
            assert all(attribute.i == 0 for attribute in node.attribute if attribute.name == "training_mode")


def test_model_batch_is_dynamic(model: onnx.ModelProto) -> None:
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    for value, sizes in ((image, [1, 28, 28]), (logits, [NUM_CLASSES])):
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param == "N"
        assert [dim.dim_value for dim in rest] == sizes


def test_model_accuracy() -> None:
    session = ort.InferenceSession(calib_data.path("fashion_resnet.onnx"), providers=["CPUExecutionProvider"])
    arrays = load("eval.npz")
    correct = 0
    for start in range(0, SIZES["eval.npz"], 500):
        batch = slice(start, start + 500)
        x = (arrays["images"][batch].astype(np.float32) / np.float32(255) - arrays["mean"]) / arrays["std"]
        (logits,) = session.run(["logits"], {"image": x})
        correct += int((np.argmax(logits, axis=1) == arrays["labels"][batch]).sum())
    assert correct / SIZES["eval.npz"] >= 0.93
