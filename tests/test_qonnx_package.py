"""What QONNX's own package makes of our files: its executor, its clean-up and its conversions."""

import copy
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import pdq_export
import pdq_export.calib_data as calib_data
from pdq_export.validate import Session

from .onnx_text import fill, name_nodes, parse

pytest.importorskip("qonnx", reason="needs the package qonnx: pip install --no-deps -r tests/qonnx.txt")

from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.qcdq_to_qonnx import QCDQToQuant
from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
from qonnx.util.cleanup import cleanup_model

DEPTHWISE = """c = Conv <pads = [1, 1, 1, 1]> (image, w1, b1) r = Relu(c)
    d = Conv <pads = [1, 1, 1, 1], group = 8> (r, w2, b1) lo = Constant <value_float = 0.0> ()
    hi = Constant <value_float = 6.0> () z = Clip(d, lo, hi) e = Conv (z, w3, b1) s = Add(e, r)
    f = Conv <pads = [1, 1, 1, 1], group = 8> (s, w2, b1) q = Relu(f) p = GlobalAveragePool(q) l = Flatten(p)
    y = Gemm <transB = 1> (l, w4, b4)"""
WEIGHTS = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (5, 8), "b4": (5,)}
IMAGES = 8


@pytest.fixture(autouse=True)
def _models_that_onnxruntime_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor makes models of the newest format of onnx, which may be newer than what onnxruntime takes."""
    monkeypatch.setattr(onnx, "IR_VERSION", 10)


def networks() -> dict[str, tuple[onnx.ModelProto, NDArray[np.float32]]]:
    with np.load(calib_data.path("calib.npz")) as archive:
        images = ((archive["images"][:64] / 255 - archive["mean"]) / archive["std"]).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(64, 3, 8, 8)).astype(np.float32)
    depthwise = name_nodes(fill(parse(DEPTHWISE), WEIGHTS))
    return {"embedded": (onnx.load(calib_data.path("fashion_resnet.onnx")), images), "depthwise": (depthwise, noise)}


class Files:
    """Quantized networks by name, bits and kind of weights, as `ort` and `qonnx`, with images."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], Any] = {}

    def of(self, name: str, bits: str, weights: str) -> tuple[onnx.ModelProto, onnx.ModelProto, NDArray[np.float32]]:
        """Calibrated once."""
        key = (name, bits, weights)
        if key not in self._known:
            model, images = networks()[name]
            options = {"bits": bits, "weights": weights, "method": "nearest", "device": "cpu"}
            ort = pdq_export.quantize(model, calib=images, reduce_range=True, **options).model
            self._known[key] = ort, pdq_export.convert(ort, "qonnx"), images[:IMAGES]
        return self._known[key]


@pytest.fixture(scope="module")
def files() -> Files:
    return Files()


def wrapped(model: onnx.ModelProto, **options: Any) -> ModelWrapper:
    """Cleaned up, for `IMAGES` images."""
    return cleanup_model(ModelWrapper(copy.deepcopy(model)), override_inpsize=IMAGES, **options)


def executed(model: ModelWrapper, images: NDArray[np.float32]) -> NDArray[np.float32]:
    (found,) = execute_onnx(model, {model.graph.input[0].name: images}).values()
    return found


@pytest.mark.parametrize("weights", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", ["2/2", "3/4", "4/4", "7/8"])
@pytest.mark.parametrize("name", ["embedded", "depthwise"])
def test_the_executor_gives_what_was_calibrated(files: Files, name: str, bits: str, weights: str) -> None:
    ort, qonnx, images = files.of(name, bits, weights)
    (expected,) = Session(ort.SerializeToString()).run(images)
    found = executed(wrapped(qonnx), images)
    assert (found.argmax(1) == expected.argmax(1)).all()
    differences = np.abs(found - expected) / np.abs(expected).max()
    assert np.median(differences) < 1e-6
    assert differences.max() < 2e-2  # an 8-bit integer in the middle between two may go either way


@pytest.mark.parametrize("bits", ["2/2", "4/4"])
@pytest.mark.parametrize("name", ["embedded", "depthwise"])
def test_clean_up_and_conversions_change_nothing(files: Files, name: str, bits: str) -> None:
    _, qonnx, images = files.of(name, bits, "asymmetric")
    plain = wrapped(qonnx)
    expected = executed(plain, images)
    others = {
        "channels last": copy.deepcopy(plain).transform(ConvertToChannelsLastAndClean()),
        "biases extracted": wrapped(qonnx, extract_conv_bias=True),
        "MatMul": copy.deepcopy(plain).transform(GemmToMatMul()),
    }
    for what, changed in others.items():
        found = executed(changed, images)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), what
    kinds = {node.op_type for node in others["channels last"].graph.node if node.domain.endswith("channels_last")}
    assert "Conv" in kinds


@pytest.mark.parametrize("bits", ["2/2", "4/4"])
@pytest.mark.parametrize("name", ["embedded", "depthwise"])
def test_symmetric_weights_become_qcdq_and_quant_again(files: Files, name: str, bits: str) -> None:
    """Activations with zero points keep their Quant, as the conversion says."""
    _, qonnx, images = files.of(name, bits, "symmetric")
    plain = wrapped(qonnx)
    expected = executed(plain, images)
    qcdq = cleanup_model(copy.deepcopy(plain).transform(QuantToQCDQ()))
    assert np.abs(executed(qcdq, images) - expected).max() <= 1e-5 * np.abs(expected).max()
    weights = [qcdq.find_producer(node.input[1]) for node in qcdq.graph.node if node.op_type in ("Conv", "Gemm")]
    assert {node.op_type for node in weights} == {"DequantizeLinear"}
    left = [node for node in qcdq.graph.node if node.op_type == "Quant"]
    assert all(qcdq.get_initializer(node.input[2]) != 0 for node in left)
    again = cleanup_model(qcdq.transform(QCDQToQuant()))
    assert "DequantizeLinear" not in {node.op_type for node in again.graph.node}
    assert np.abs(executed(again, images) - expected).max() <= 1e-5 * np.abs(expected).max()
