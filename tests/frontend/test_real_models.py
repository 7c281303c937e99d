"""Whole networks against onnxruntime: as exported, with their clutter, for several batch and image sizes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from pdq_export import calib_data
from pdq_export.frontend import import_model

MODELS = [
    ("resnet20_cifar10", [(1, 3, 32, 32), (5, 3, 32, 32)]),
    ("resnet20_cifar10_folded", [(1, 3, 32, 32), (5, 3, 32, 32)]),
    ("efficientnet_lite0_imagenet", [(2, 3, 224, 224)]),
    ("ch_ppocr_mobile_v2.0_cls_infer", [(1, 3, 48, 192), (3, 3, 48, 96)]),
    ("ch_PP-OCRv4_det_infer", [(1, 3, 64, 96), (2, 3, 96, 64)]),
]


def check(path: Path, shapes: list[tuple[int, ...]]) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnx.load(path)
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    # A final Sigmoid or Softmax would hide differences: what goes into it is compared as well.
    model.graph.output.append(onnx.ValueInfoProto(name=last.input[0]))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    module = import_model(model)
    for number, shape in enumerate(shapes):
        x = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        expected = session.run(None, {session.get_inputs()[0].name: x})
        with torch.no_grad():
            found = module(torch.from_numpy(x))
        for ours, theirs in zip(found, expected, strict=True):
            scale = float(np.abs(theirs).max())
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=max(2e-5 * scale, 1e-6))


@pytest.mark.parametrize(("name", "shapes"), MODELS)
def test_agrees_with_onnxruntime(name: str, shapes: list[tuple[int, ...]], shared_models: Path) -> None:
    check(shared_models / f"{name}.onnx", shapes)


def test_embedded_model_agrees_with_onnxruntime() -> None:
    check(calib_data.path("fashion_resnet.onnx"), [(1, 1, 28, 28), (4, 1, 28, 28)])


@pytest.mark.parametrize("name", [name for name, _ in MODELS])
def test_every_node_that_matters_is_one_call(name: str, shared_models: Path) -> None:
    model = onnx.load(shared_models / f"{name}.onnx")
    module = import_model(model)
    outputs = {output: node.name for node in model.graph.node for output in node.output}
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    assert all(
        node.meta["onnx_node"] == outputs.get(node.meta["tensor"], "") for node in calls if "tensor" in node.meta
    )
    weighted = {"Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "Add", "Relu", "Concat"}
    expected = [node.output[0] for node in model.graph.node if node.op_type in weighted]
    found = {node.meta["tensor"] for node in calls if "tensor" in node.meta}
    # A Concat of constants only (a shape) is a parameter of its reader.
    assert [tensor for tensor in expected if tensor not in found and "Concat" not in outputs[tensor]] == []
