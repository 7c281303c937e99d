"""`inspect_model`: what it says is what `quantize` then does."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from pdq_export import calib_data, targets
from pdq_export.commands.inspect import Inspection, inspect_model
from pdq_export.commands.quantize import quantize
from pdq_export.config.config import make_config
from pdq_export.errors import ModelError, OptionError, ValidationError
from pdq_export.export.cost import constant_bytes

from ..onnx_text import fill, name_nodes, parse

P = "<pads = [1, 1, 1, 1]>"
SHARED = Path(__file__).resolve().parents[3] / "shared"
SHAPES = {"w0": (4, 3, 3, 3), "w": (4, 4, 3, 3), "t": (4, 4, 3, 3), "v": (5, 4)}


def model_of(body: str, inputs: str = "float[N,3,8,8] image", outputs: str = "float[N,K] y") -> onnx.ModelProto:
    return name_nodes(fill(parse(body, inputs, outputs), SHAPES))


HEAD = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm <transB = 1> (f, v)"
MIXED = f"""c0 = Conv {P} (image, w0) r0 = Relu(c0) c1 = Conv {P} (r0, w) r1 = HardSwish(c1)
    c2 = ConvTranspose {P} (r1, t) z = Relu(c2) {HEAD}"""


def floating(found: Inspection) -> dict[str, str]:
    return {node.node: node.reason for node in found.floating}


def test_the_embedded_model() -> None:
    path = calib_data.path("fashion_resnet.onnx")
    found = inspect_model(path, bits="2/2")
    told = json.loads(found.to_json())
    assert told["schema_version"] == 2
    assert told["model"]["size"] == path.stat().st_size
    assert told["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["N", 1, 28, 28]}]
    assert told["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["N", 10]}]
    assert (told["opset"], told["settings"]["opset"]) == (17, 17)
    assert told["family"] == "plain"
    assert told["hyper_parameters"]["temperature"] == 4
    assert told["batch_norm"] == {"in_file": 11, "statistics": 11, "layers": 12}
    assert len(told["layers"]) == 12
    assert [layer for block in told["blocks"] for layer in block["layers"]] == [x["node"] for x in told["layers"]]
    assert told["kernels"] == {"integer": {"QGemm": 1, "QLinearConv": 11}, "floating": {}}
    assert told["floating"] == told["unsupported"] == told["problems"] == []


def test_layers_and_kernels_are_those_of_the_quantized_file() -> None:
    model = model_of(MIXED)
    rules = {"layer_bits": ["^c1$=3/5"], "exclude": ["y"], "first_last": "6/6"}
    images = np.random.default_rng(1).normal(size=(8, 3, 8, 8)).astype(np.float32)
    options = {"samples": 8, "iters": 2, "correction_iters": 0, "batch_size": 4}
    found = inspect_model(model, bits="4/4", **rules, **options)
    result = quantize(model, bits="4/4", calib=images, options=options, device="cpu", **rules)  # type: ignore[arg-type]
    told, report = found.to_dict(), result.report
    told_layers = [{name: value for name, value in layer.items() if name != "bytes"} for layer in told["layers"]]
    written = [
        {name: value for name, value in layer.items() if name != "weight_bytes"} for layer in report.to_dict()["layers"]
    ]
    assert told_layers == written
    assert {name: report.settings[name] for name in told["settings"]} == told["settings"]
    assert found.kernels is not None
    assert (found.kernels.integer, found.kernels.floating) == (report.kernels.integer, report.kernels.floating)


SIZES = {
    "2/2": {},
    "3/3": {},
    "3/4": {"target": "native"},
    "4/4": {"runtime": "1.31"},
    "5/5": {"weights": "symmetric"},
    "6/6": {},
    "7/7": {},
    "7/8": {"target": "qcdq"},
    "8/8": {"target": "tensorrt"},
    "4/3": {"layer_bits": ["conv2=2/2", "shortcut=6/4"], "exclude": ["^/fc/"]},
}


@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("bits", SIZES)
def test_the_size_of_the_embedded_model_is_predicted_to_a_thousandth(bits: str) -> None:
    check_size(calib_data.path("fashion_resnet.onnx"), calib_data.path("calib.npz"), bits=bits, **SIZES[bits])


@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("bits", ["2/2", "4/4"])
def test_the_size_of_a_real_model_is_predicted_to_a_thousandth(bits: str) -> None:
    model, images = SHARED / "models/resnet20_cifar10.onnx", SHARED / "data/cifar10_calib.npz"
    if not model.exists():
        pytest.skip("no models beside the checkout")
    check_size(model, images, bits=bits)


def check_size(model: Path, images: Path, **options: object) -> None:
    """Predicted with what the run is asked, too, which the file tells."""
    config = make_config({"samples": 8, "method": "nearest", "calib": str(images), **options})
    written = quantize(model, config=config, device="cpu")
    found = inspect_model(model, config=config)
    size = written.report.quantized.size
    assert found.quantized_size == pytest.approx(size, rel=1e-3)
    assert found.to_dict()["size"]["ratio"] == pytest.approx(size / Path(model).stat().st_size, rel=1e-3)
    counted = constant_bytes(written.model.graph, (*written.plan.layers, *written.plan.excluded)).weights
    layers = {layer["node"]: layer["bytes"] for layer in found.to_dict()["layers"]}
    for layer in (*written.plan.layers, *written.plan.excluded):
        channels = written.tensors[layer.weight].scale.size if layer.weight in written.tensors else 0
        assert abs(layers[layer.node] - counted[layer.weight]) <= 2 * channels + 16  # a bias has one byte more or two


def test_a_weight_that_layers_share_counts_for_the_first_of_them() -> None:
    body = f"""c0 = Conv {P} (image, w0) r0 = Relu(c0) c1 = Conv {P} (r0, w) r1 = Relu(c1) c2 = Conv {P} (r1, w)
        z = Relu(c2) {HEAD}"""
    found = inspect_model(model_of(body), bits="4/4")
    assert found.layer_bytes["c1"] > 4 * 4 * 9 / 2
    assert found.layer_bytes["c2"] == 0
    assert found.quantized_size is not None
    assert sum(found.layer_bytes.values()) < found.quantized_size


def test_what_stays_in_float_and_why() -> None:
    assert floating(inspect_model(model_of(MIXED), exclude="y")) == {
        "c2": "onnxruntime has no integer kernel for ConvTranspose; its weight is quantized",
        "p": "its output is not quantized",
        "f": "what it passes on is not quantized",
        "y": "excluded",
    }
    body = f"c0 = Conv {P} (image, w0) r0 = Relu(c0) k = MatMul(r0, r0) d = Div(k, r0) y = Conv {P} (d, w)"
    assert floating(inspect_model(model_of(body, outputs="float[N,4,8,8] y"))) == {
        "k": "no operand is a constant matrix or kernel",
        "d": "onnxruntime has no integer kernel for Div",
        "y": "its output is not quantized, as the network's outputs are not; its weight is quantized",
    }


def test_every_unsupported_node_is_named() -> None:
    found = inspect_model(model_of(f"c0 = Conv {P} (image, w0) a = Acosh(c0) b = Asinh(a) z = Acosh(b) {HEAD}"))
    supported = [message for message in found.unsupported if "Asinh" in message]
    assert [message.split(":")[0] for message in found.unsupported if message not in supported] == [
        "node 'a' (Acosh, opset 17)",
        "node 'z' (Acosh, opset 17)",
    ]
    assert found.quantized_size is not None


def test_what_would_stop_later_stages_is_a_problem() -> None:
    body = f"k = Cast <to = 1> (index) s = Mul(image, k) c0 = Conv {P} (s, w0) z = Relu(c0) {HEAD}"
    found = inspect_model(model_of(body, inputs="float[N,3,8,8] image, int64 index"))
    assert len(found.problems) == 1
    assert "input 'index': is int64; expected float32" in found.problems[0]
    body = f"s = Slice(image, a, b, a) c0 = Conv {P} (s, w0) z = Relu(c0) {HEAD}"
    model = model_of(body, inputs="float[2,3,8,8] image", outputs="float[2,K] y")
    for name, value in {"a": 0, "b": 2}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    (problem,) = inspect_model(model).problems
    assert "its batch size is fixed at 2" in problem


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match="--weights 'signed': expected asymmetric or symmetric"):
        inspect_model(model_of(MIXED), weights="signed")
    with pytest.raises(OptionError, match="matches none of the 10 nodes' names"):
        inspect_model(model_of(MIXED), exclude="layer9")
    with pytest.raises(ModelError, match="nothing to quantize"):
        inspect_model(model_of("y = Relu(image)", outputs="float[N,3,8,8] y"))


def broken(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """A model that is exported so that it loads and does not run."""
    real = targets.export_model

    def export(*arguments: object, **named: object) -> onnx.ModelProto:
        model = real(*arguments, **named)  # type: ignore[arg-type]
        shape = next(tensor for tensor in model.graph.initializer if tensor.name == "shape")
        shape.CopyFrom(onnx.numpy_helper.from_array(np.array([7, -1, 5]), "shape"))
        return model

    monkeypatch.setattr("pdq_export.targets.export_model", export)
    body = f"c0 = Conv {P} (image, w0) r0 = Relu(c0) k = Reshape(r0, shape) z = Softmax(k) y = Neg(z)"
    model = model_of(body, outputs="float[N,4,64] y")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 4, -1]), "shape"))
    return model


def test_what_would_not_run_is_told_before_calibration_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    model = broken(monkeypatch)
    (problem,) = inspect_model(model).problems
    assert problem.startswith("node 'k' (Reshape): what would be written does not run (onnxruntime fails on a batch of")
    assert problem.endswith("leave what fails in float with --exclude '^k$'")
    monkeypatch.setattr("pdq_export.commands.calibrating.calibrate", None)
    images = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
    with pytest.raises(ValidationError, match=r"node 'k' \(Reshape\): what would be written does not run"):
        quantize(model, bits="8/8", calib=images, device="cpu")


def test_sizes_that_do_not_suit_the_model_are_no_problem() -> None:
    body = f"c0 = Conv {P} (image, w0) z = Relu(c0) b = Add(z, grid) y = Conv {P} (b, w)"
    model = model_of(body, inputs="float[N,3,H,W] image", outputs="float[N,4,H,W] y")
    grid = np.zeros((1, 4, 8, 8), np.float32)  # it takes images of 8 x 8 alone, which nothing says
    model.graph.initializer.append(onnx.numpy_helper.from_array(grid, "grid"))
    assert inspect_model(model).problems == ()


KERNELS = {  # what decides which kernels onnxruntime takes, besides what other tests have
    "relu behind a gemm": f"c0 = Conv {P} (image, w0) z = Relu(c0) p = GlobalAveragePool(z) f = Flatten(p) "
    "g = Gemm <transB = 1> (f, q) r = Relu(g) y = Gemm <transB = 1> (r, v)",
    "dropout": f"c0 = Conv {P} (image, w0) z = Relu(c0) p = GlobalAveragePool(z) f = Flatten(p) "
    "g = Gemm <transB = 1> (f, q) r = Relu(g) d = Dropout(r, rate) y = Gemm <transB = 1> (d, v)",
    "relu before a reshape": f"c0 = Conv {P} (image, w0) z = Relu(c0) p = GlobalAveragePool(z) f = Flatten(p) "
    "g = Gemm <transB = 1> (f, q) r = Relu(g) d = Reshape(r, same) y = Gemm <transB = 1> (d, v)",
    "gate": f"c0 = Conv {P} (image, w0) h = Sigmoid(c0) z = Mul(c0, h) {HEAD}",
    "relu6": f"c0 = Conv {P} (image, w0) r = Clip(c0, none, six) c1 = Conv {P} (r, w) z = Clip(c1, none, six) {HEAD}",
    "swish": f"c0 = Conv {P} (image, w0) z = HardSwish(c0) {HEAD}",
    "outputs anywhere": f"c0 = Conv {P} (image, w0) r = Relu(c0) t = Transpose <perm = [0, 2, 3, 1]> (r) "
    f"c1 = Conv {P} (r, w) z = Relu(c1) "
    f"u = Identity(c1) {HEAD}",
    "transposed": f"c0 = Conv {P} (image, w0) r = Relu(c0) c1 = ConvTranspose {P} (r, t) z = Relu(c1) {HEAD}",
    "matrix": f"c0 = Conv {P} (image, w0) z = Relu(c0) m = Reshape(z, rows) k = MatMul(m, stack) y = Relu(k)",
    "softmax": f"c0 = Conv {P} (image, w0) z = Softmax <axis = 1> (c0) {HEAD}",
}
CONSTANTS = {
    "rate": np.float32(0.5),
    "same": np.array([0, -1]),
    "none": np.float32(0),
    "six": np.float32(6),
    "rows": np.array([0, -1, 64]),
    "stack": np.random.default_rng(1).normal(size=(1, 64, 3)).astype(np.float32),
}


@pytest.mark.parametrize("bits", ["8/8", "4/2"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_layers_that_run_as_integers_are_those_of_the_file(name: str, bits: str) -> None:
    body = KERNELS[name]
    outputs = {"outputs anywhere": "float[N,8,8,4] t, float[N,4,8,8] u, float[N,K] y", "matrix": "float[N,4,3] y"}
    model = name_nodes(
        fill(parse(body, outputs=outputs.get(name, "float[N,K] y")), {**SHAPES, "q": (4, 4)} | {"t": (4, 4, 3, 3)})
    )
    read = {tensor for node in model.graph.node for tensor in node.input}
    for key, value in CONSTANTS.items():
        if key in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), key))
    images = np.random.default_rng(1).normal(size=(8, 3, 8, 8)).astype(np.float32)
    result = quantize(model, bits=bits, calib=images, method="nearest", options={"samples": 8}, device="cpu")
    found = inspect_model(model, bits=bits)
    assert found.problems == ()
    assert found.kernels is not None
    kernels = result.report.kernels
    assert (found.kernels.integer, found.kernels.floating) == (kernels.integer, kernels.floating)
    assert [dataclasses.asdict(node) for node in found.floating] == list(result.report.floating)


def test_what_onnxruntime_does_not_load_is_a_problem() -> None:
    body = f"c0 = Conv {P} (image, w0) i = Cast <to = 5> (c0) j = Relu(i) z = Cast <to = 1> (j) {HEAD}"
    found = inspect_model(model_of(body))
    assert len(found.layers) == 2
    first, *_ = found.problems
    assert "does not load the model: " in first
    assert "Could not find an implementation for Relu(14)" in first
