"""`quantize` from file to file on the embedded model, and what it does with models and data that are wrong."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from click.testing import Result as Finished
from onnx import TensorProto
from PIL import Image

import pdq_export
from pdq_export import calib_data
from pdq_export.cli import app
from pdq_export.commands.quantize import Progress, Result, quantize
from pdq_export.data import ImageSet, load_images
from pdq_export.errors import DataError, ModelError, OptionError, PdqError

from ..onnx_text import fill

pytestmark = pytest.mark.usefixtures("short_search")

TINY = {"samples": 32, "iters": 4, "correction_iters": 1, "batch_size": 16, "search_samples": 32}
EMBEDDED = calib_data.path("fashion_resnet.onnx")
CALIBRATION = calib_data.path("calib.npz")
WEIGHTED = 12  # layers of the embedded model
UINT2 = TensorProto.UINT2


@pytest.fixture(scope="module")
def evaluation() -> ImageSet:
    return load_images(calib_data.path("eval.npz")).head(200)


def run_embedded(evaluation: ImageSet, bits: str, **options: object) -> Result:
    return quantize(EMBEDDED, bits=bits, calib=CALIBRATION, eval=evaluation, options=TINY, device="cpu", **options)


@pytest.fixture(scope="module")
def quantized(evaluation: ImageSet) -> Callable[[str], Result]:
    """The embedded model at some bits, quantized once."""
    results: dict[str, Result] = {}

    def get(bits: str) -> Result:
        if bits not in results:
            results[bits] = run_embedded(evaluation, bits)
        return results[bits]

    return get


def content(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def stored_types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer}


def opset(model: onnx.ModelProto) -> int:
    (version,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return version


EXPECTED = [  # bits, largest size ratio, least top-1, opset, a type that is stored
    ("4/4", 0.25, 0.85, 17, TensorProto.UINT8),
    ("2/2", 0.15, 0.2, 17, TensorProto.UINT8),
    ("8/8", 0.35, None, None, TensorProto.INT8),
    ("3/5", 0.2, 0.85, 17, TensorProto.UINT8),
]


@pytest.mark.parametrize(("bits", "ratio", "top1", "version", "stored"), EXPECTED, ids=[case[0] for case in EXPECTED])
def test_the_embedded_model(
    quantized: Callable[[str], Result],
    evaluation: ImageSet,
    bits: str,
    ratio: float,
    top1: float | None,
    version: int | None,
    stored: int,
) -> None:
    result = quantized(bits)
    report = result.report
    assert str(result.plan.bits) == bits
    assert result.tensors.keys() == result.plan.points.keys()
    session = onnxruntime.InferenceSession(content(result.model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": evaluation.array(20)})
    assert logits.shape == (20, 10)
    assert np.isfinite(logits).all()
    assert stored in stored_types(result.model)
    assert version is None or opset(result.model) == version

    assert report.images == 200
    assert len(result.plan.layers) == WEIGHTED
    assert report.kernels.all_integer
    assert sum(report.kernels.integer.values()) == WEIGHTED
    (output,) = report.outputs
    assert output.name == "logits"
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.argmax_agreement >= 0.99
    if bits == "8/8":
        assert output.quantized_simulated.relative_error < 1e-3
    assert report.float_accuracy is not None
    assert report.quantized_accuracy is not None
    assert report.float_accuracy.top1 > 0.9
    assert report.quantized_accuracy.top1 >= (report.float_accuracy.top1 - 0.01 if top1 is None else top1)

    assert report.model.size == EMBEDDED.stat().st_size
    assert report.quantized.size == len(content(result.model))
    assert report.size_ratio < ratio


def test_inputs_and_outputs_stay_the_users(quantized: Callable[[str], Result]) -> None:
    original = onnx.load(EMBEDDED)
    for bits in ("4/4", "2/2"):
        graph = quantized(bits).model.graph
        for before, after in ((original.graph.input, graph.input), (original.graph.output, graph.output)):
            assert [value.name for value in after] == [value.name for value in before]
            assert [value.type for value in after] == [value.type for value in before]
    assert quantized("4/4").model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_metadata_tells_how_it_was_made(quantized: Callable[[str], Result]) -> None:
    model = quantized("3/5").model
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["pdq_export.version"] == pdq_export.__version__
    assert metadata["pdq_export.bits"] == "3/5"
    assert metadata["pdq_export.target"] == "ort"
    assert metadata["pdq_export.seed"] == "0"
    options = json.loads(metadata["pdq_export.options"])
    assert {name: options[name] for name in TINY} == TINY
    assert json.loads(metadata["pdq_export.config"])["calib"] == str(CALIBRATION)  # as it was given
    assert str(Path.cwd()) not in str(metadata).replace(str(CALIBRATION), "")


def test_the_report_is_valid_json(quantized: Callable[[str], Result]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result = quantized("4/4")
    report = json.loads(result.report.to_json(), parse_constant=refuse)
    assert report["schema_version"] == 1
    assert report["model"]["name"] == "fashion_resnet.onnx"
    assert report["images"] == 200
    assert report["settings"]["bits"] == "4/4"
    assert report["settings"]["opset"] == opset(result.model)
    assert report["settings"]["device"] == "cpu"
    assert report["settings"]["evaluated_on_calibration_images"] is False
    assert report["kernels"]["floating"] == {}
    for accuracy in report["accuracy"].values():
        assert 0 <= accuracy["top1"] <= accuracy["top5"] <= 1


def test_the_same_call_gives_the_same_bytes(
    quantized: Callable[[str], Result], evaluation: ImageSet, tmp_path: Path
) -> None:
    first = quantized("4/4")
    stages: list[str] = []

    def progress(at: Progress) -> None:
        if stages[-1:] != [at.stage]:
            stages.append(at.stage)
        if at.block is not None:
            assert at.stage == "calibrate"
            assert 0 <= at.block.index < at.block.count == len(first.plan.blocks)
            assert (0 if at.block.phase else 1) <= at.block.step <= at.block.steps
            assert at.block.steps == TINY["iters"] or at.block.phase.startswith("FP32 network")  # before all blocks

    output = tmp_path / "out.onnx"
    second = run_embedded(evaluation, "4/4", output=output, progress=progress)
    assert content(second.model) == content(first.model)
    assert output.read_bytes() == content(first.model)
    assert (first.files, second.files) == ((), (output,))
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    reports = [result.report.to_dict() for result in (first, second)]
    assert [report["quantized"].pop("name") for report in reports] == ["", "out.onnx"]
    assert {report.pop("latency")["batch"] for report in reports} == {1}  # as long as it took this time
    assert {bool(block.pop("seconds")) for report in reports for block in report["blocks"]} == {True}  # likewise
    assert reports[0] == reports[1]
    assert stages == ["load", "plan", "read", "check", "calibrate", "export", "validate"]


def test_little_memory_gives_the_same_bytes(
    quantized: Callable[[str], Result], evaluation: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdq_export.calibrate.memory.resident_bytes", lambda: 0)
    monkeypatch.setattr("pdq_export.calibrate.store.Store.require", lambda *_: None)  # it says that no step fits
    limited = run_embedded(evaluation, "4/4", max_memory="2MB")
    assert content(limited.model) == content(quantized("4/4").model)


def test_an_older_opset_stores_two_bits_in_four(quantized: Callable[[str], Result], evaluation: ImageSet) -> None:
    """In native; ort keeps the model's own."""
    result = run_embedded(evaluation, "2/2", opset=21, target="native")
    assert opset(result.model) == 21
    types = stored_types(result.model)
    assert TensorProto.UINT4 in types
    assert UINT2 not in types
    newest = quantized("2/2")
    assert all(np.array_equal(q.integers, newest.tensors[name].integers) for name, q in result.tensors.items())
    assert result.report.quantized_accuracy == newest.report.quantized_accuracy
    assert result.report.size_ratio > newest.report.size_ratio


# A network of which quantizing takes no time.

SMALL = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,8,8] image) => (float[N,5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (image, w1)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w2)
}"""
SHAPES = {"w1": (4, 3, 3, 3), "w2": (5, 4), "w3": (4, 4, 3, 3)}
FAST = {"samples": 16, "iters": 4, "correction_iters": 1, "batch_size": 4}


def small(text: str = SMALL) -> onnx.ModelProto:
    return fill(onnx.parser.parse_model(text), SHAPES)


def images(count: int = 10, side: int = 8) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, side, side)).astype(np.float32)


def with_nan(position: int) -> np.ndarray:
    x = images()
    x[position, 2, 1, 0] = np.nan
    return x


def test_evaluation_images_that_calibration_has_seen_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def settings(calib: np.ndarray, judged: np.ndarray) -> Mapping[str, Any]:
        result = quantize(small(), bits="4/4", calib=calib, eval=judged, method="nearest", device="cpu")
        return result.report.settings

    x = images(12)
    told = settings(x[:8], x[6:])
    assert (told["evaluated_on_calibration_images"], told["evaluation_images_seen_in_calibration"]) == (False, 2)
    assert "2 of the 6 evaluation images are among the 8 of calibration" in caplog.text
    told = settings(x, x)
    assert (told["evaluated_on_calibration_images"], told["evaluation_images_seen_in_calibration"]) == (True, 12)
    caplog.clear()
    told = settings(x[:8], x[8:])
    assert (told["evaluated_on_calibration_images"], told["evaluation_images_seen_in_calibration"]) == (False, 0)
    assert not caplog.text


def test_a_file_of_no_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    x = images()
    quantize(small(), bits="4/4", calib=x, eval=x, method="nearest", device="cpu")
    assert "of no use" not in caplog.text
    quantize(small(), bits="4/4", calib=x / 1000, eval=x, method="nearest", device="cpu")
    assert "output 'y': its error on array is 100 % of FP32's output" in caplog.text


def test_images_that_are_all_the_same_are_told(caplog: pytest.LogCaptureFixture) -> None:
    quantize(small(), bits="4/4", calib=np.ones((8, 3, 8, 8), np.float32), method="nearest", device="cpu")
    assert "all 8 images are the same" in caplog.text


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch(batch: int) -> None:
    """Exporters write one unless told otherwise; the number of images need not be a multiple of it."""
    text = SMALL.replace("[N,", f"[{batch},")
    model = small(text)
    result = quantize(model, bits="4/4", calib=images(), options=FAST, device="cpu")
    assert result.model.graph.input[0].type == model.graph.input[0].type
    assert result.report.images >= 8
    assert result.report.settings["evaluated_on_calibration_images"] is True


def test_a_fixed_batch_in_a_reshape() -> None:
    text = SMALL.replace("[N,", "[1,").replace(
        "f = Flatten(p)", "k = Constant <value_ints = [1, 4]> ()\nf = Reshape(p, k)"
    )
    result = quantize(small(text), bits="4/4", calib=images(), options=FAST, device="cpu")
    assert result.report.images == 10


def test_the_users_model_is_not_changed() -> None:
    model = small()
    before = content(model)
    result = quantize(model, bits="2/2", calib=images(), options=FAST, device="cpu")
    assert content(model) == before
    assert content(result.model) != before


def test_an_array_and_an_image_set_are_the_same_images() -> None:
    x = images()
    as_array, as_set = (
        quantize(small(), calib=source, options=FAST, device="cpu")
        for source in (x, ImageSet.from_array(x, source="s"))
    )
    assert content(as_array.model) == content(as_set.model)


MIDDLE = "d = Relu(c)\ne = Conv (d, w3)\ng = Relu(e)\nh = Conv (g, w3)\nr = Relu(h)"  # neither first nor last
DEEPER = SMALL.replace("r = Relu(c)", MIDDLE)


@pytest.mark.parametrize(
    ("target", "bits", "config"),
    [
        ("native", "4/4", {}),
        ("native", "2/2", {"session.disable_quant_qdq": "1"}),
        ("qcdq", "4/4", {}),
        ("tensorrt", "8/8", {}),
    ],
)
def test_other_targets_agree_with_the_simulation(target: str, bits: str, config: dict[str, str]) -> None:
    result = quantize(small(DEEPER), bits=bits, target=target, calib=images(), options=FAST, device="cpu")
    assert result.report.settings["target"] == target
    assert result.report.session_config == config
    agreement = result.report.outputs[0].quantized_simulated
    assert agreement is not None
    assert agreement.median_relative_error < 1e-6
    # Without integer kernels onnxruntime adds floats, and a sum on the edge of a step can fall to either side.
    assert agreement.max_relative_error < (1e-2 if config else 1e-3)
    assert result.report.to_dict()["session_config"] == config


def test_a_target_can_be_chosen_after_calibration() -> None:
    at_once = quantize(small(DEEPER), bits="4/4", target="native", calib=images(), options=FAST, device="cpu").model
    first = quantize(small(DEEPER), bits="4/4", calib=images(), options=FAST, device="cpu").model
    later = pdq_export.convert(first, "native")
    assert (later.graph, later.opset_import) == (at_once.graph, at_once.opset_import)
    assert content(pdq_export.convert(later, "ort")) == content(first)


def test_tensorrt_activations_are_symmetric() -> None:
    result = quantize(small(DEEPER), bits="8/8", target="tensorrt", calib=images(), options=FAST, device="cpu")
    assert result.report.settings["weights"] == "symmetric"
    assert all(not tensor.zero_point.any() for tensor in result.tensors.values())
    with pytest.raises(OptionError, match="--target tensorrt: tensor 'd' is to have 4 bits; expected 8"):
        quantize(small(DEEPER), bits="8/4", target="tensorrt", calib=images(), options=FAST, device="cpu")


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdq_export.graph.save._SMALLEST", 16)
    path, again = tmp_path / "out.onnx", tmp_path / "again.onnx"
    arguments = {"bits": "4/4", "calib": images(), "options": FAST, "device": "cpu"}
    result = quantize(small(DEEPER), output=path, external_data=True, **arguments)
    data = tmp_path / "out.onnx.data"
    assert result.files == (path, data)
    assert result.report.quantized.size == path.stat().st_size + data.stat().st_size
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": images()})[0].shape == (10, 5)
    before = data.read_bytes()
    onnx.save(small(DEEPER), again, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    float_data = data.read_bytes()
    with pytest.raises(OptionError, match="is the same file as the input"):
        quantize(again, output=path, external_data=True, overwrite=True, **arguments)
    assert data.read_bytes() == float_data != before


@pytest.mark.parametrize("target", ["native", "qcdq"])
def test_convert_writes_what_quantizing_would_have_written(target: str) -> None:
    arguments = {"bits": "4/4", "calib": images(), "options": FAST, "device": "cpu"}
    ours, other = (quantize(small(DEEPER), target=name, **arguments).model for name in ("ort", target))
    for found, expected in ((pdq_export.convert(ours, target), other), (pdq_export.convert(other, "ort"), ours)):
        assert found.graph == expected.graph
        assert found.opset_import == expected.opset_import
        told = [{p.key: p.value for p in m.metadata_props if p.key != "pdq_export.source"} for m in (found, expected)]
        assert told[0] == told[1]


# What is wrong.


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ModelError, "missing.onnx: no such file", {"model": Path("missing.onnx")}),
        (DataError, "missing.npz: no such file or folder", {"calib": "missing.npz"}),
        (OptionError, "weight bits are 9", {"bits": "9/1"}),
        (OptionError, "'four': expected W/A", {"bits": "four"}),
        (OptionError, "there is no folder 'no'", {"output": "no/out.onnx"}),
        (OptionError, "is the same file as the input", {"output": "model.onnx", "overwrite": True}),
        (OptionError, "exists already", {"output": "images.npy", "calib": images()}),
        (OptionError, "--weights asymmetric: --target", {"bits": "8/8", "weights": "asymmetric", "target": "tensorrt"}),
        (OptionError, "'tpu': expected auto, cpu", {"device": "tpu"}),
        (OptionError, "None: expected auto, cpu", {"device": None}),
        (OptionError, "--device 'cuda:99'", {"device": "cuda:99"}),
        (OptionError, "--max-memory 'much': expected a size", {"max_memory": "much"}),
        (OptionError, "--max-memory 1 MB: the process holds", {"max_memory": "1MB"}),
        (OptionError, "--max-memory 10.0 kB: the process holds", {"max_memory": "10KB"}),
        (OptionError, "--opset 12: expected 13 or more", {"opset": 12}),
        (OptionError, "'nowhere'", {"target": "nowhere"}),
        (
            DataError,
            "image 3 holds NaN",
            {"calib": with_nan(3)},
        ),
        (DataError, "N x C x H x W", {"calib": images()[0]}),
    ],
)
def test_calls_that_are_refused(
    folder: Path, error: type[PdqError], message: str, arguments: dict[str, object]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments = {"model": "model.onnx", "calib": "images.npy", "options": FAST, "output": "out.onnx", **arguments}
    with pytest.raises(error, match=re.escape(message)):
        quantize(**arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("which", ["calib", "eval"])
def test_missing_data_is_told_before_any_work(folder: Path, which: str) -> None:
    stages: list[Progress] = []
    arguments = {"calib": "images.npy", which: folder / "missing.npz"}
    with pytest.raises(DataError, match=r"missing\.npz: no such file or folder"):
        quantize("model.onnx", options=FAST, progress=stages.append, **arguments)
    assert not stages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with model.onnx and images.npy that fit each other."""
    monkeypatch.chdir(tmp_path)
    onnx.save(small(), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", images())
    return tmp_path


def command(model: str = "model.onnx", calib: str = "images.npy", output: str = "out.onnx") -> Finished:
    budget = ["--samples", "8", "--iters", "2", "--correction-iters", "1", "--device", "cpu", "--quiet"]
    args = ["quantize", model, "--calib", calib, "-o", output, "--report", "report.json", *budget]
    return CliRunner().invoke(app, args)


def make_text(folder: Path) -> None:
    (folder / "model.onnx").write_text("# Not a model\n\nbut a README.\n")


def make_truncated(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(EMBEDDED.read_bytes()[:300_000])


def make_empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")


def make_unweighted(folder: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    m (float[N,3,8,8] image) => (float[N,3,1,1] y) { r = Relu(image)  y = GlobalAveragePool(r) }"""
    onnx.save(small(text), folder / "model.onnx")


def make_unsupported(folder: Path) -> None:
    model = small(SMALL.replace("r = Relu(c)", "r = Hardmax(c)"))
    model.graph.node[1].name = "the_culprit"
    onnx.save(model, folder / "model.onnx")


def make_foreign(folder: Path) -> None:
    text = SMALL.replace('["": 17]', '["": 17, "com.example": 1]')
    model = small(text.replace("r = Relu(c)", "r = com.example.Swirl(c)"))
    model.graph.node[1].name = "the_culprit"
    onnx.save(model, folder / "model.onnx")


def make_quantized(folder: Path) -> None:
    result = quantize(small(), calib=images(), options=FAST, device="cpu")
    onnx.save(result.model, folder / "model.onnx")


def make_two_inputs(folder: Path) -> None:
    text = SMALL.replace("image) =>", "image, float[N,4,8,8] other) =>")
    onnx.save(small(text.replace("r = Relu(c)", "r = Add(c, other)")), folder / "model.onnx")


def make_other_shape(folder: Path) -> None:
    np.save(folder / "images.npy", images(side=9))


def make_nan(folder: Path) -> None:
    np.save(folder / "images.npy", with_nan(7))


def make_weights_nan(folder: Path) -> None:
    model = small()
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 1, 2, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
    onnx.save(model, folder / "model.onnx")


def make_folder(folder: Path) -> None:
    (folder / "images.npy").unlink()
    (folder / "images.npy").mkdir()


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_text, "model.onnx: is not an ONNX file: it is text that begins with"),
        (make_truncated, "model.onnx: is not an ONNX protobuf, or truncated"),
        (make_empty, "model.onnx: is empty"),
        (make_unweighted, "nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul"),
        (make_unsupported, "node 'the_culprit' (Hardmax, opset 17): not supported"),
        (make_foreign, "the_culprit"),
        (make_quantized, "the model is already quantized"),
        (
            make_two_inputs,
            "images.npy: no .npz; expected an .npz with one float32 array for each of the model's",
        ),
        (make_other_shape, "images.npy: images are 3 x 9 x 9 (C x H x W), but the model's"),
        (make_nan, "images.npy: image 7 holds NaN or Inf"),
        (make_weights_nan, "constant 'w1' holds 1 NaN"),
        (make_folder, "images.npy: no images, it is empty"),
    ],
    ids=lambda value: value.__name__.removeprefix("make_") if callable(value) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, capfd: pytest.CaptureFixture[str], make: Callable[[Path], None], message: str
) -> None:
    make(folder)
    capfd.readouterr()
    result = command()
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("pdq-export: error: ")
    assert message in line
    assert capfd.readouterr() == ("", "")  # nor do the libraries below print anything
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "images.npy"}


@pytest.mark.usefixtures("logging_as_before")
def test_an_output_below_a_file(folder: Path) -> None:
    result = command(output="images.npy/out.onnx")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("logging_as_before")
def test_a_corrupt_jpeg_among_good_ones(folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "preprocess.toml").write_text("mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n")
    pixels = np.random.default_rng(2).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    for position, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "photos" / f"{position}.jpg")
    whole = (folder / "photos" / "4.jpg").read_bytes()
    (folder / "photos" / "4.jpg").write_bytes(whole[: len(whole) // 2])
    result = command(calib="photos")
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("pdq-export: warning: photos/4.jpg: skipped: ")
    assert json.loads((folder / "report.json").read_text())["images"] == 8
    onnxruntime.InferenceSession(folder / "out.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("option", "value", "told", "instead"),
    [
        (
            "prediction_precision",
            "tf32",
            "tf32 is a precision of NVIDIA's GPUs",
            "float32",
        ),
        ("capture_step", True, "calibration runs on cpu, where there is nothing to capture", False),
    ],
)
def test_what_the_device_cannot_do_is_refused_before_the_model_is_read(
    option: str, value: object, told: str, instead: object
) -> None:
    asked = {"bits": "auto", "max_size": 0.2, "calib": CALIBRATION, "device": "cpu"}
    with pytest.raises(OptionError, match=told):
        quantize(EMBEDDED, **asked, options={option: value}, progress=pytest.fail)

    class BegunError(Exception):
        pass

    def begin(at: Progress) -> None:
        raise BegunError

    with pytest.raises(BegunError):
        quantize(EMBEDDED, **asked, options={option: instead}, progress=begin)
