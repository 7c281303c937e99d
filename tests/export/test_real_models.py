"""Real networks, quantized by min-max; skipped where the shared models are missing."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from pdq_export.export import export_model, required_opset
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.validate import Session, count_kernels

from . import toy_networks as nets
from .toy_quantizer import calibrate, simulate


def quantize(path: Path, bits: str, x: np.ndarray):
    original = onnx.load(path)
    plan = make_plan(prepare(original).model, PlanOptions.of(bits))
    model = prepare(original, opset=required_opset(plan)).model
    plan = make_plan(model, PlanOptions.of(plan.bits))
    tensors = calibrate(model, plan, {model.graph.input[0].name: x})
    return model, plan, tensors, export_model(model, plan, tensors, metadata={})


@pytest.mark.parametrize(("bits", "largest"), [("8/8", 0.30), ("4/4", 0.20), ("2/2", 0.13)])
@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet20_cifar10_folded"])
def test_resnet(shared_models, name, bits, largest):
    x = nets.images((4, 3, 32, 32))
    model, plan, tensors, exported = quantize(shared_models / f"{name}.onnx", bits, x)
    content = exported.SerializeToString()
    assert len(content) <= largest * (shared_models / "resnet20_cifar10.onnx").stat().st_size
    kernels = count_kernels(content)
    assert kernels.all_integer
    assert kernels.integer == {"QLinearConv": 19, "QGemm": 1}
    simulated = simulate(model, plan, tensors, {"image": x})["logits"]
    (logits,) = Session(content).run(x)
    # A value in the middle between two integers may be rounded either way: see export/arithmetic.py.
    assert np.linalg.norm(logits - simulated) < 0.02 * np.linalg.norm(simulated)
    assert (logits.argmax(1) == simulated.argmax(1)).all()


def test_depthwise_network_with_relu6(shared_models):
    x = nets.images((1, 3, 224, 224))
    *_, exported = quantize(shared_models / "efficientnet_lite0_imagenet.onnx", "4/4", x)
    kernels = count_kernels(exported.SerializeToString())
    assert kernels.all_integer
    assert kernels.integer == {"QLinearConv": 49, "QGemm": 1}


@pytest.mark.parametrize(
    ("name", "shape"),
    [("ch_ppocr_mobile_v2.0_cls_infer", (1, 3, 48, 192)), ("ch_PP-OCRv4_det_infer", (1, 3, 64, 64))],
)
def test_networks_with_hard_activations_and_dynamic_axes(shared_models, name, shape):
    x = nets.images(shape)
    model, _, _, exported = quantize(shared_models / f"{name}.onnx", "8/8", x)
    quantized, reference = (Session(m.SerializeToString()).run(x)[0] for m in (exported, model))
    assert quantized.shape == reference.shape
    assert np.abs(quantized - reference).max() < 0.25
