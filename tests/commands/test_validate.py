"""`validate`: figures of any pair of files, held against a plain script that runs both in onnxruntime."""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from PIL import Image

from pdq_export import calib_data, validate_models
from pdq_export.data import load_images
from pdq_export.errors import DataError, ModelError, OptionError, PdqError, ValidationError
from pdq_export.report import Report
from pdq_export.validate import Session

from ..quant_reference import run_qonnx

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 3, 6, 6), dtype=np.float32)
LABELS = RNG.integers(0, 7, 50)
NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,6,6] x) => (float[N,7] scores, float[N,4,3,3] features) {
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)
    features = Relu(a)
    pooled = GlobalAveragePool(features)
    flat = Flatten(pooled)
    scores = MatMul(flat, v)
}"""
WEIGHTS = {
    "w": RNG.standard_normal((4, 3, 3, 3), dtype=np.float32),
    "b": RNG.standard_normal(4, dtype=np.float32),
    "v": RNG.standard_normal((4, 7), dtype=np.float32),
}


def parse(text: str, **weights: NDArray[Any]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def net(weights: Mapping[str, NDArray[Any]] = WEIGHTS, **replaced: str) -> onnx.ModelProto:
    text = NET
    for old, new in replaced.items():
        text = text.replace(old, new)
    return parse(text, **weights)


def rounded(**changes: Any) -> onnx.ModelProto:
    return net({name: np.round(array, 1) for name, array in WEIGHTS.items()}, **changes)


def by_hand(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as INT8 with one scale each and UINT8 pairs around every activation that has 4 axes, with onnx alone."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, nodes = made.graph, list(made.graph.node)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in ("w", "v")}
    del graph.node[:]
    for name, array in weights.items():
        scale = np.float32(np.abs(array).max() / 63)  # 7 bits: wider ones saturate on some processors
        stored = np.round(array / scale).astype(np.int8)
        graph.initializer.extend(
            [numpy_helper.from_array(stored, f"{name}_q"), numpy_helper.from_array(scale, f"{name}_scale")]
        )
        graph.node.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_scale"], [f"{name}_dq"]))
    graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.04), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    )
    for node in nodes:
        node.input[:] = [f"{name}_dq" if name in weights else name for name in node.input]
        if node.op_type == "Conv":
            graph.node.append(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"]))
            graph.node.append(helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"]))
            node.input[0] = "x_dq"
        graph.node.append(node)
    onnx.checker.check_model(made)
    return made


def by_onnxruntime(model: Path, out: Path, form: QuantFormat, images: NDArray[np.float32]) -> Path:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{onnxruntime.InferenceSession(model).get_inputs()[0].name: images}])

        def get_next(self) -> Any:
            return next(self.left, None)

    quantize_static(model, out, Reader(), quant_format=form, weight_type=QuantType.QInt8, reduce_range=True)
    return out


def plain_script(
    original: Path, quantized: Path, images: NDArray[np.float32], labels: NDArray[Any]
) -> dict[str, dict[str, float]]:
    """What anybody would write to compare two files."""
    runs = []
    for path in (original, quantized):
        session = onnxruntime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        feeds = [{session.get_inputs()[0].name: images[i : i + 16]} for i in range(0, len(images), 16)]
        outputs = [session.run(None, feed) for feed in feeds]
        runs.append({name: np.concatenate([batch[i] for batch in outputs]) for i, name in enumerate(names)})
    found = {}
    for name, reference in runs[0].items():
        wide, other = reference.astype(np.float64), runs[1][name].astype(np.float64)
        found[name] = {
            "sqnr": 10 * math.log10((wide**2).sum() / ((other - wide) ** 2).sum()),
            "relative": math.sqrt(((other - wide) ** 2).sum() / (wide**2).sum()),
            "agreement": float((wide.argmax(1) == other.argmax(1)).mean()),
        }
        for which, scores in (("float", wide), ("quantized", other)):
            for k in (1, 5) if scores.ndim == 2 else ():
                best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
                found[name][f"top{k}_{which}"] = float((best == labels[:, None]).any(axis=1).mean())
    return found


def check(report: Report, expected: Mapping[str, Mapping[str, float]]) -> None:
    """Shares of images to the bit, sums of squares but for their order."""
    assert [output.name for output in report.outputs] == list(expected)
    for output in report.outputs:
        found, figures = output.quantized_float, expected[output.name]
        assert found is not None
        assert found.argmax_agreement == figures["agreement"]
        assert found.sqnr_db == pytest.approx(figures["sqnr"], rel=1e-12)
        assert found.relative_error == pytest.approx(figures["relative"], rel=1e-12)
    figures = next(iter(expected.values()))
    for accuracy, which in ((report.float_accuracy, "float"), (report.quantized_accuracy, "quantized")):
        assert accuracy is not None
        assert (accuracy.top1, accuracy.top5) == (figures[f"top1_{which}"], figures[f"top5_{which}"])
    assert report.top1_changes is not None
    assert report.top1_changes.drop == pytest.approx(100 * (figures["top1_float"] - figures["top1_quantized"]))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def data(images: NDArray[Any] = X, labels: NDArray[Any] | None = LABELS, path: Path | None = None) -> Path:
    assert path is not None
    np.savez(path, images=images, **({} if labels is None else {"labels": labels}))
    return path


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "by hand"])
def test_figures_are_those_of_a_plain_script(original: Path, tmp_path: Path, form: str) -> None:
    quantized = tmp_path / "quantized.onnx"
    if form == "by hand":
        onnx.save(by_hand(net()), quantized)
    else:
        by_onnxruntime(original, quantized, getattr(QuantFormat, form), X)
    report = validate_models(original, quantized, data=data(path=tmp_path / "data.npz"))
    check(report, plain_script(original, quantized, X, LABELS))
    assert report.images == 50
    assert report.size_ratio == quantized.stat().st_size / original.stat().st_size
    assert report.kernels is not None
    assert report.latency is not None
    assert report.latency.batch == 1


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_trained_network_as_onnxruntime_quantizes_it(tmp_path: Path, form: QuantFormat) -> None:
    original = calib_data.path("fashion_resnet.onnx")
    images, judged = (load_images(calib_data.path(name)) for name in ("calib.npz", "eval.npz"))
    quantized = by_onnxruntime(original, tmp_path / "quantized.onnx", form, images.array(32))
    few = judged.head(500)
    report = validate_models(original, quantized, data=few)
    assert few.labels is not None
    check(report, plain_script(original, quantized, few.images, few.labels))
    assert report.kernels is not None
    assert sum(report.kernels.integer.values()) > 0
    assert report.quantized_accuracy is not None
    assert report.quantized_accuracy.top1 > 0.85


def by_qonnx() -> onnx.ModelProto:
    """Weights of 4 bits with one scale each, and the images of 8 bits, as QONNX's Quant nodes."""
    made, domain = net(), "qonnx.custom_op.general"
    made.opset_import.append(helper.make_opsetid(domain, 1))
    nodes = list(made.graph.node)
    del made.graph.node[:]
    numbers = {"zero": 0.0, "four": 4.0, "eight": 8.0, "x_scale": 0.04, "w_scale": 0.4, "v_scale": 0.4}
    made.graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items())
    for name, bits in (("x", "eight"), ("w", "four"), ("v", "four")):
        inputs, how = [name, f"{name}_scale", "zero", bits], {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
        made.graph.node.append(helper.make_node("Quant", inputs, [f"{name}_q"], domain=domain, **how))
    for node in nodes:
        node.input[:] = [f"{name}_q" if name in ("x", "w", "v") else name for name in node.input]
        made.graph.node.append(node)
    return made


@pytest.mark.parametrize("form", ["path", "external data", "model"])
def test_files_of_qonnx_run_with_quant_spelt_out(original: Path, tmp_path: Path, form: str) -> None:
    made, path = by_qonnx(), tmp_path / "qonnx.onnx"
    how = {"location": "qonnx.onnx.data", "size_threshold": 0}
    onnx.save(by_qonnx(), path, save_as_external_data=form == "external data", **how)
    report = validate_models(original, made if form == "model" else path, data=X)
    before = Session(original).run(X)
    for output, reference, found in zip(report.outputs, before, run_qonnx(made, {"x": X}), strict=True):
        assert output.quantized_float is not None
        wide = reference.astype(np.float64)
        relative = math.sqrt(((found - wide) ** 2).sum() / (wide**2).sum())
        assert output.quantized_float.relative_error == pytest.approx(relative, rel=1e-4)
        assert relative > 0.01
    assert report.latency is None
    if form != "model":
        assert report.quantized.size == sum(file.stat().st_size for file in tmp_path.glob("qonnx.onnx*"))


def test_what_of_qonnx_does_not_run_is_refused(original: Path, tmp_path: Path) -> None:
    made, path = by_qonnx(), tmp_path / "qonnx.onnx"
    made.graph.node[0].op_type = "BipolarQuant"
    onnx.save(made, path)
    with pytest.raises(ModelError, match=r"qonnx\.onnx: node 'x_q': it is a BipolarQuant of QONNX; expected Quant"):
        validate_models(original, path, data=X)


def test_labels_may_be_given_beside_the_data() -> None:
    report = validate_models(net(), rounded(), data=X, labels=LABELS)
    assert report.float_accuracy == validate_models(net(), rounded(), data=(X, LABELS)).float_accuracy is not None


@pytest.mark.parametrize("form", ["npy", "folder"])
def test_images_are_read_as_the_configuration_says(original: Path, tmp_path: Path, form: str) -> None:
    pixels = RNG.integers(0, 256, (6, 3, 6, 6), dtype=np.uint8)
    source = tmp_path / ("pixels.npy" if form == "npy" else "pixels")
    if form == "npy":
        np.save(source, pixels)
    else:
        source.mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image.transpose(1, 2, 0)).save(source / f"{number}.png")
    (tmp_path / "run.toml").write_text("[preprocess]\nmean = [0.1, 0.2, 0.3]\nstd = [0.5, 0.6, 0.7]\n")
    mean, std = (np.array(x, np.float32).reshape(3, 1, 1) for x in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    expected = validate_models(original, rounded(), data=(pixels / np.float32(255) - mean) / std)
    by_file = validate_models(original, rounded(), data=source, config=tmp_path / "run.toml")
    by_option = validate_models(original, rounded(), data=source, mean="0.1,0.2,0.3", std=[0.5, 0.6, 0.7])
    assert by_file.outputs == by_option.outputs
    for output, right in zip(by_file.outputs, expected.outputs, strict=True):
        assert output.quantized_float is not None
        assert right.quantized_float is not None
        assert output.quantized_float.sqnr_db == pytest.approx(right.quantized_float.sqnr_db, rel=1e-4)
    assert by_option.settings["preprocess"] == {"mean": "0.1,0.2,0.3", "std": "0.5,0.6,0.7"}
    with pytest.raises(DataError, match="std is missing; expected mean and std together"):
        validate_models(original, rounded(), data=source, mean="0.1,0.2,0.3")


def test_everything_is_in_the_report(original: Path, tmp_path: Path) -> None:
    files = {"report": tmp_path / "r.json", "junit": tmp_path / "j.xml", "markdown": tmp_path / "m.md"}
    report = validate_models(original, rounded(), data=data(path=tmp_path / "data.npz"), max_drop=100, **files)
    written = json.loads(files["report"].read_text())
    assert written == json.loads(report.to_json())
    assert written["gates"][0]["option"] == "--max-drop"
    assert written["latency"]["batch"] == 1
    assert written["top1_changes"]["images"] == 50
    assert written["settings"]["batch_size"] == 16
    assert "--max-drop" in files["junit"].read_text()
    assert "--max-drop 100" in files["markdown"].read_text()


def test_names_that_differ_are_matched_by_position(original: Path, tmp_path: Path) -> None:
    renamed = rounded(**{"x)": "image)", "(x,": "(image,", "scores": "prob", "features": "map"})
    report = validate_models(original, renamed, data=data(path=tmp_path / "data.npz"))
    assert report.settings["renamed"] == {"x": "image", "scores": "prob", "features": "map"}
    assert [(output.name, output.quantized_name) for output in report.outputs] == [
        ("scores", "prob"),
        ("features", "map"),
    ]
    plain = validate_models(original, rounded(), data=tmp_path / "data.npz")
    assert [output.quantized_float for output in report.outputs] == [output.quantized_float for output in plain.outputs]


TWO = """<ir_version: 8, opset_import: ["" : 17]>
two (float[N,4] a, float[N,4] b) => (float[N,4] y, float[N] z) {
    y = Sub(a, b)
    z = ReduceSum<keepdims = 0>(y, axes)
}"""
AXES = np.array([1])


def test_inputs_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    swapped = TWO.replace("float[N,4] a, float[N,4] b", "float[N,4] b, float[N,4] a")
    swapped = swapped.replace("(float[N,4] y, float[N] z)", "(float[N] z, float[N,4] y)")
    arrays = {"a": X[:, 0, 0, :4], "b": X[:, 1, 0, :4]}
    report = validate_models(parse(TWO, axes=AXES), parse(swapped, axes=AXES), data=arrays, min_sqnr=200)
    assert [output.quantized_float.sqnr_db for output in report.outputs if output.quantized_float] == [None, None]
    assert not report.failed_gates


def test_half_precision(tmp_path: Path) -> None:
    half = net({name: array.astype(np.float16) for name, array in WEIGHTS.items()}, float="float16")
    report = validate_models(net(), half, data=X)
    assert all(45 < (output.quantized_float.sqnr_db or 0) < 80 for output in report.outputs if output.quantized_float)
    twice = validate_models(half, half, data=X)
    assert [output.quantized_float.sqnr_db for output in twice.outputs if output.quantized_float] == [None, None]


def test_pixels_may_be_integers() -> None:
    """A model that scales its images itself, with a uint8 input, beside one that takes them as floats."""
    text = NET.replace("a = Conv", "scaled = Cast<to = 1>(x) a = Conv").replace("(x, w, b)", "(scaled, w, b)")
    pixels = RNG.integers(0, 256, X.shape).astype(np.float32)
    own = parse(text.replace("float[N,3,6,6] x", "uint8[N,3,6,6] x"), **WEIGHTS)
    (scores, _) = validate_models(net(), own, data=pixels).outputs
    assert scores.quantized_float is not None
    assert scores.quantized_float.sqnr_db is None
    with pytest.raises(ValidationError, match=r"input 'x' \(tensor\(uint8\) .* numbers that uint8 does not hold"):
        validate_models(net(), own, data=X)


def test_it_needs_no_torch() -> None:
    """Which takes seconds to import."""
    code = "import sys, pdq_export.commands.validate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_fixed_batch_takes_whole_batches(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = validate_models(net(), rounded(N="8"), data=X)
    assert report.images == 48
    assert "batch size is 8: the last 2 samples are left out" in caplog.text
    assert report.latency is not None
    assert report.latency.batch == 8
    with pytest.raises(OptionError, match="--batch-size 4: the files fix it to 8"):
        validate_models(net(), rounded(N="8"), data=X, batch_size=4)
    with pytest.raises(DataError, match="5 samples; expected at least 8"):
        validate_models(net(), rounded(N="8"), data=X[:5])


def test_batches_may_have_another_size() -> None:
    all_at_once, one_by_one = (validate_models(net(), rounded(), data=X, batch_size=size) for size in (50, 1))
    for one, other in zip(all_at_once.outputs, one_by_one.outputs, strict=True):
        assert one.quantized_float is not None
        assert other.quantized_float is not None
        assert one.quantized_float.sqnr_db == pytest.approx(other.quantized_float.sqnr_db, rel=1e-5)


def test_an_index_of_a_class_agrees_or_does_not() -> None:
    text = NET.replace("float[N,7] scores, float[N,4,3,3] features", "int64[N] best").replace(
        "scores = MatMul(flat, v)", "scores = MatMul(flat, v) best = ArgMax<axis = 1, keepdims = 0>(scores)"
    )
    coarse = {name: np.round(array) for name, array in WEIGHTS.items()}
    first, second = parse(text, **WEIGHTS), parse(text, **coarse)
    report = validate_models(first, second, data=X, min_agreement=100)
    runs = [onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": X})[0] for m in (first, second)]
    assert report.gates[0].value == 100 * (runs[0] == runs[1]).mean() < 100
    assert not report.gates[0].passed
    with pytest.raises(OptionError, match="--min-sqnr 10: the outputs are 'best' int64"):
        validate_models(first, second, data=X, min_sqnr=10)


def test_outputs_whose_size_depends_on_the_data_are_left_to_metrics(caplog: pytest.LogCaptureFixture) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x) => (float[N,4] y, float[M] chosen) {
        y = Mul(x, w)
        large = Greater(y, t)
        flags = Reshape(large, shape)
        all = Reshape(y, shape)
        chosen = Compress(all, flags)
    }"""
    models = [parse(text, w=np.full(4, w, np.float32), t=np.float32(1), shape=np.array([-1])) for w in (1, 1.1)]
    arrays = {"x": X[:, 0, 0, :4]}

    def found(outputs: Mapping[str, Any], _: Any) -> float:
        return sum(len(batch) for batch in outputs["chosen"])

    report = validate_models(*models, data=arrays, metrics=[found], max_metric_rise={"found": 0}, min_sqnr=10)
    assert [output.name for output in report.outputs] == ["y"]
    assert report.uncompared["chosen"].startswith("its shape is [")
    assert "output 'chosen' is not compared" in caplog.text
    sqnr, rise = report.gates
    assert not sqnr.passed
    assert "cannot be compared, and fails: output 'chosen': its shape is [11], FP32's [9]" in sqnr.told
    assert rise.value == (arrays["x"] > 1 / 1.1).sum() - (arrays["x"] > 1).sum()
    assert not rise.passed


def test_images_may_lie_along_another_axis() -> None:
    """[T, N, K]: the argmax is not that of images, and errors of single images are theirs."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,3,6] x) => (float[T,N,6] y) { z = Mul(x, w) y = Transpose<perm = [1, 0, 2]>(z) }"""
    straight = text.replace("float[T,N,6] y", "float[N,3,6] y").replace(
        "y = Transpose<perm = [1, 0, 2]>(z)", "y = Identity(z)"
    )
    weights = [np.ones(6, np.float32), np.linspace(0.9, 1, 6, dtype=np.float32)]
    arrays = {"x": X[:, :, 0]}
    found, expected = (
        validate_models(*(parse(t, w=w) for w in weights), data=arrays).outputs[0].quantized_float
        for t in (text, straight)
    )
    assert found is not None
    assert expected is not None
    assert found.images == expected.images == 50
    assert found.max_relative_error == pytest.approx(expected.max_relative_error)
    assert found.sqnr_error_db == pytest.approx(expected.sqnr_error_db)


def test_external_data_count(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    report = validate_models(tmp_path / "a.onnx", rounded(), data=X)
    assert report.model.size == sum((tmp_path / name).stat().st_size for name in ("a.onnx", "a.data"))
    with pytest.raises(OptionError, match="is the same file as the input"):
        validate_models(tmp_path / "a.onnx", rounded(), data=X, report=tmp_path / "a.data", overwrite=True)


def test_a_metric_sees_both_files(original: Path, tmp_path: Path) -> None:
    seen = []

    def right(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> dict[str, float]:
        seen.append(outputs["scores"])
        return {"right": (outputs["scores"].argmax(1) == labels).mean(), "mean": outputs["features"].mean()}

    path = data(path=tmp_path / "data.npz")
    report = validate_models(original, rounded(), data=path, metrics=[right], min_metric=["right=0", "mean=9"])
    assert [array.shape for array in seen] == [(50, 7), (50, 7)]
    assert report.float_accuracy is not None
    assert report.quantized_accuracy is not None
    values = {value.name: value for value in report.metrics}
    assert values["right"].float_value == report.float_accuracy.top1
    assert values["right"].quantized_value == report.quantized_accuracy.top1
    assert [gate.passed for gate in report.gates] == [True, False]


def broken(_outputs: Any, _labels: Any) -> float:
    raise RuntimeError("no masks here")


REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], type[PdqError], str]] = {
    "no labels": (lambda _: {"data": X, "max_drop": 1}, OptionError, "--max-drop 1: array has no labels"),
    "no such data": (lambda p: {"data": p / "nothing.npz"}, DataError, "no such file or folder"),
    "data of another size": (lambda _: {"data": X[:, :, :5]}, DataError, "but the model's input"),
    "a metric that fails": (
        lambda _: {"metrics": [broken]},
        OptionError,
        "metric broken: fails on the outputs of FP32: RuntimeError: no masks here",
    ),
    "no metric of that name": (
        lambda _: {"metrics": [len], "min_metric": "iou=1"},
        OptionError,
        "no metric gives 'iou'; expected one of len|metric len: fails",
    ),
    "no such module": (
        lambda _: {"metric": "nowhere_at_all:f"},
        OptionError,
        "--metric nowhere_at_all:f: no module 'nowhere_at_all'",
    ),
    "no batch": (lambda _: {"batch_size": 0}, OptionError, "--batch-size 0: expected a whole number, 1 or more"),
    "no model": (lambda p: {"quantized": p / "nothing.onnx"}, ModelError, "no such file"),
    "another network": (
        lambda _: {"quantized": net(**{"N,3,6,6": "N,5,6,6"})},
        PdqError,
        "does not load|inputs of the two files do not fit each other",
    ),
    "two inputs": (
        lambda _: {"quantized": parse(TWO, axes=AXES)},
        ModelError,
        r"inputs of the two files do not fit each other: 'x' \(tensor\(float\) \? x 3 x 6 x 6\) of the first, 'a' .*",
    ),
    "a report that exists": (
        lambda p: {"report": data(path=p / "r.npz")},
        OptionError,
        "exists already; choose another name, or replace it with --overwrite",
    ),
    "two files of one name": (
        lambda p: {"junit": p / "g.xml", "markdown": p / "g.xml", "max_drop": 1},
        OptionError,
        "is both --markdown and --junit; expected two files",
    ),
    "labels that are no classes": (
        lambda p: {"data": data(labels=LABELS + 7, path=p / "d.npz")},
        DataError,
        r"labels span \[7, 13\]; expected 0 to 6",
    ),
    "NaN": (
        lambda _: {"quantized": net({**WEIGHTS, "v": np.full((4, 7), np.nan, np.float32)})},
        ValidationError,
        "output 'scores': it contains NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told_and_nothing_is_written(case: str, original: Path, tmp_path: Path) -> None:
    changes, error, message = REFUSED[case]
    given = {"quantized": rounded(), "data": X, "report": tmp_path / "report.json", **changes(tmp_path)}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=message):
        validate_models(original, **given)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fixed_batches_that_differ() -> None:
    with pytest.raises(ModelError, match="axis 0 is fixed to 2 and 4"):
        validate_models(net(N="2"), net(N="4"), data=X)


def test_outputs_that_the_second_file_lacks(caplog: pytest.LogCaptureFixture) -> None:
    without = rounded()
    del without.graph.output[1]
    report = validate_models(net(), without, data=X)
    assert list(report.uncompared) == ["features"]
    assert "output 'features' is not compared: the second file has no such output" in caplog.text


TWO_OUTPUTS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] a, float[N,4] b) { a = Identity(x) b = Neg(x) }"""
ONE_OF_TWO = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] b) { b = Neg(x) }"""
ROWS = X[:, 0, 0, :4]


def graph(body: str, outputs: str = "float[N,4] y") -> onnx.ModelProto:
    return parse(f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => ({outputs}) {{ {body} }}')


def test_top1_is_that_of_the_first_output_or_none() -> None:
    with pytest.raises(ModelError, match="output 'a', the first of the FP32 file, is what labels belong to"):
        validate_models(parse(TWO_OUTPUTS), parse(ONE_OF_TWO), data=(ROWS, LABELS % 4), max_drop=1)
    report = validate_models(parse(TWO_OUTPUTS), parse(ONE_OF_TWO), data=ROWS)
    assert report.float_accuracy is None
    seen = validate_models(
        parse(TWO_OUTPUTS), parse(ONE_OF_TWO), data=(ROWS, LABELS % 4), metrics=[lambda _, labels: len(labels)]
    )
    assert (seen.float_accuracy, seen.metrics[0].quantized_value) == (None, 50)


def test_an_output_that_the_second_file_lacks_fails_gates() -> None:
    report = validate_models(parse(TWO_OUTPUTS), parse(ONE_OF_TWO), data=ROWS, min_agreement=99, min_sqnr=40)
    assert [gate.passed for gate in report.gates] == [False, False]
    assert all("output 'a': the second file has no such output" in gate.told for gate in report.gates)


def test_metrics_cannot_spoil_labels() -> None:
    class Spoils:
        def update(self, _: Any, labels: NDArray[Any]) -> None:
            labels[:] = 0

        def compute(self) -> float:
            return 0

    with pytest.raises(OptionError, match=r"metric Spoils: fails on the outputs of FP32: ValueError.*read-only"):
        validate_models(net(), rounded(), data=(X, LABELS), metrics=[Spoils])


def test_numbers_that_are_none_fail_gates_and_everything_is_written(tmp_path: Path) -> None:
    models = graph("y = Identity(x)"), graph("y = Sqrt(x)")
    asked = {"min_sqnr": 1, "max_drop": 1, "min_agreement": 50}
    report = validate_models(*models, data=(ROWS, LABELS % 4), **asked, junit=tmp_path / "gates.xml")
    assert [gate.passed for gate in report.gates] == [False, False, False]
    assert all("it contains NaN or infinity where FP32's does not" in gate.told for gate in report.gates)
    assert (tmp_path / "gates.xml").read_text().count("<failure") == 3
    assert json.loads(report.to_json())["not_finite"] == ["y"]
    with pytest.raises(ValidationError, match="output 'y': it contains NaN or infinity where FP32's does not"):
        validate_models(*models, data=ROWS, max_size_ratio=9)


def test_infinities_of_both_files_are_equal() -> None:
    log = graph("r = Relu(x) y = Log(r)")
    (output,) = validate_models(log, log, data=ROWS, min_agreement=100).outputs
    assert (output.against_float.sqnr_db, output.against_float.argmax_agreement) == (None, 1.0)


def test_outputs_of_zeros_have_no_signal() -> None:
    report = validate_models(graph("z = Sub(x, x) y = Identity(z)"), graph("y = Identity(x)"), data=ROWS, min_sqnr=1)
    (gate,) = report.gates
    assert (gate.passed, gate.value) == (False, None)
    assert "there is no signal" in gate.told
    assert json.loads(report.to_json())["outputs"][0]["quantized_float"]["relative_error"] is None


def test_one_number_for_all_samples_is_not_compared() -> None:
    model = graph("y = Identity(x) s = ReduceMean<keepdims = 0>(x)", "float[N,4] y, float s")
    report = validate_models(model, model, data=ROWS)
    assert [output.name for output in report.outputs] == ["y"]
    assert report.uncompared == {"s": "it is one number for all samples, on samples 0 and following"}


@pytest.mark.parametrize("option", ["report", "junit", "markdown"])
@pytest.mark.parametrize("read", ["options.toml", "scores_of.py", "images/a.png", "images/deep/b.npy", "net.onnx"])
def test_nothing_that_is_read_is_replaced(
    option: str, read: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "options.toml").write_text("[gates]\nmin_sqnr = 1\n")
    (tmp_path / "scores_of.py").write_text("def mean(outputs, labels):\n    return 0\n")
    for name in ("images/a.png", "images/deep/b.npy"):
        (tmp_path / name).write_bytes(b"kept")
    before = (tmp_path / read).read_bytes()
    with pytest.raises(OptionError, match=r"(is the same file as|exists in the folder).* input"):
        validate_models(
            original,
            rounded(),
            data=tmp_path / "images",
            config=tmp_path / "options.toml",
            metric="scores_of:mean",
            overwrite=True,
            **{option: tmp_path / read},
        )
    assert (tmp_path / read).read_bytes() == before
    sys.modules.pop("scores_of", None)
