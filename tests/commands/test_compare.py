"""`compare`: a layer that is broken on purpose is named first, in files of whichever tool."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import QuantFormat

from pdq_export import LayerReport, calib_data, compare_models, convert, quantize
from pdq_export.data import load_images
from pdq_export.errors import ModelError, OptionError
from tests.onnx_text import fill, parse
from tests.quantized_files import quantize_by_onnxruntime, scaled

FOLDER = Path(calib_data.__file__).parent
MODEL = FOLDER / "fashion_resnet.onnx"
BROKEN = "/blocks/blocks.1/conv2/Conv"
FORMS = (QuantFormat.QDQ, QuantFormat.QOperator)


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    (batch,) = load_images(FOLDER / "eval.npz").head(48).batches(48)
    assert isinstance(batch, np.ndarray)
    return batch


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, images: NDArray[Any]) -> dict[QuantFormat, onnx.ModelProto]:
    return {form: quantize_by_onnxruntime(MODEL, images, tmp_path_factory.mktemp("ort"), form) for form in FORMS}


def compared(quantized: Any, images: NDArray[Any], **options: Any) -> LayerReport:
    return compare_models(MODEL, quantized, data=images, **options)


@pytest.fixture(scope="module")
def reports(files: dict[QuantFormat, onnx.ModelProto], images: NDArray[Any]) -> dict[QuantFormat, LayerReport]:
    return {form: compared(file, images) for form, file in files.items()}


@pytest.mark.parametrize(
    ("form", "scale", "factor", "named"),
    [
        *((form, "ConvBnFusion_W_blocks.1.conv2.weight_scale", 8, BROKEN) for form in FORMS),
        *((form, "/blocks/blocks.1/bn2/BatchNormalization_output_0_scale", 8, BROKEN) for form in FORMS),
        # Its error hardly reaches the output: with 5 bits it is no worse there than the first layer with 8.
        (QuantFormat.QDQ, "/blocks/blocks.2/Relu_1_output_0_scale", 32, "/blocks/blocks.2/Add"),
        # QLinearConv knows no other scale of its bias than that of its input.
        (QuantFormat.QOperator, "/blocks/blocks.2/Add_output_0_scale", 32, "/blocks/blocks.3/conv1/Conv"),
    ],
)
def test_a_wrong_scale_is_named_first(
    files: dict[QuantFormat, onnx.ModelProto],
    reports: dict[QuantFormat, LayerReport],
    images: NDArray[Any],
    form: QuantFormat,
    scale: str,
    factor: float,
    named: str,
) -> None:
    before, after = reports[form], compared(scaled(files[form], scale, factor), images)
    assert after.tensors[0].node == named
    broken = {row.node: row for row in after.tensors}
    for row in before.tensors:
        if row.node not in (named, "/blocks/blocks.2/Add", "/Flatten"):
            assert broken[row.node].own_db == pytest.approx(row.own_db, abs=1e-3), row.node  # the others are as good
    own = next(row.own_db for row in before.tensors if row.node == named)
    assert own is not None
    assert (broken[named].own_db or 0) < own - 10


def test_both_forms_have_the_same_figures(reports: dict[QuantFormat, LayerReport]) -> None:
    pairs, integers = (reports[form] for form in FORMS)
    assert {row.tensor for row in pairs.tensors} == {row.tensor for row in integers.tensors}
    others = {row.tensor: row for row in integers.tensors}
    for row in pairs.tensors:
        other = others[row.tensor]
        assert (row.levels, row.quantizer_range, row.range) == (other.levels, other.quantizer_range, other.range)
        assert row.own_db == pytest.approx(other.own_db, abs=0.2)
        assert row.sqnr_db == pytest.approx(other.sqnr_db, abs=0.5)


def test_names_are_not_needed(files: dict[QuantFormat, onnx.ModelProto], images: NDArray[Any]) -> None:
    """Where a tool has made up names for everything inside, layers are found by their order."""
    file = scaled(files[QuantFormat.QDQ], "ConvBnFusion_W_blocks.1.conv2.weight_scale", 8)
    kept = {value.name for value in (*file.graph.input, *file.graph.output)}
    new: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if name in kept or not name else new.setdefault(name, f"v{len(new)}")

    for node in file.graph.node:
        node.name = ""
        node.input[:], node.output[:] = map(renamed, node.input), map(renamed, node.output)
    for tensor in file.graph.initializer:
        tensor.name = renamed(tensor.name)
    del file.graph.value_info[:]
    order = [node.name for node in onnx.load(MODEL).graph.node if node.op_type in ("Conv", "Gemm")]
    report = compared(file, images)
    layers = {layer for row in report.tensors for layer in row.layers}
    assert layers == set(order)
    assert report.tensors[0].node == BROKEN


@pytest.mark.usefixtures("short_search")
def test_a_layer_with_two_bits_is_named_first(tmp_path: Path, images: NDArray[Any]) -> None:
    rule = f"^{re.escape(BROKEN)}$"
    options: dict[str, Any] = {"bits": "8/8", "method": "nearest", "reduce_range": True}
    made = quantize(MODEL, calib=images[:16], eval=images[:16], layer_bits=[f"{rule}=2/8"], **options)
    report = compared(made.model, images)
    worst = report.tensors[0]
    assert worst.node == BROKEN
    assert worst.weight_bits == 2
    assert worst.remedy is not None
    (_, line) = shlex.split(worst.remedy.line)
    assert line == f"{rule}=8/8"
    mended = quantize(MODEL, calib=images[:16], eval=images[:16], layer_bits=[line], **options)
    assert abs(mended.model.ByteSize() - made.model.ByteSize() - worst.remedy.bytes) < 400  # shared tables
    after = {row.node: row for row in compared(mended.model, images).tensors}[BROKEN]
    assert (after.own_db or 0) > (worst.own_db or 0) + 15


def test_figures_are_those_of_a_plain_script(files: dict[QuantFormat, onnx.ModelProto], images: NDArray[Any]) -> None:
    name = "/blocks/blocks.1/Relu_output_0"
    row = {row.tensor: row for row in compared(files[QuantFormat.QDQ], images, batch_size=7).tensors}[name]
    x, y = (
        fetch(model, wanted, images)
        for model, wanted in ((onnx.load(MODEL), name), (files[QuantFormat.QDQ], f"{name}_DequantizeLinear_Output"))
    )
    # Fetched otherwise, convolutions add up in another order, and a few numbers fall on the other side of a step.
    wide, error = x.astype(np.float64), y.astype(np.float64) - x
    assert row.sqnr_db == pytest.approx(10 * np.log10((wide**2).sum() / (error**2).sum()), abs=0.01)
    assert row.cosine == pytest.approx(np.corrcoef(np.r_[x.ravel(), -x.ravel()], np.r_[y.ravel(), -y.ravel()])[0, 1])
    assert row.range == (x.min(), x.max())
    assert row.levels_used == len(np.unique(y))
    assert row.quantizer_range is not None
    low, high = row.quantizer_range
    half = (high - low) / 255 / 2
    assert row.clipped == pytest.approx(((x < low - half) | (x > high + half)).mean())


def fetch(model: onnx.ModelProto, name: str, images: NDArray[Any]) -> NDArray[np.float32]:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run([name], {model.graph.input[0].name: images})[0]
    return result


def test_the_same_file_has_no_error(images: NDArray[Any]) -> None:
    report = compared(MODEL, images)
    assert report.tensors
    for row in report.tensors:
        assert all(value is None or value > 100 for value in (row.sqnr_db, row.own_db, row.output_db))
        assert row.remedy is None
    assert report.images == 48


EQUALIZED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,5,5] x) => (float[N,4,3,3] y) {
    [wide] a = Conv(x, w)
    b = Relu(a)
    [deep] y = Conv<group = 4>(b, v)
}"""


def depthwise(factors: NDArray[np.float32], *, back: bool) -> onnx.ModelProto:
    """With channels scaled, and not scaled back unless ``back``."""
    rng = np.random.default_rng(0)
    made = onnx.parser.parse_model(EQUALIZED)
    scale = factors.reshape(-1, 1, 1, 1)
    weights = {
        "w": rng.standard_normal((4, 3, 1, 1), dtype=np.float32) * scale,
        "v": rng.standard_normal((4, 1, 3, 3), dtype=np.float32) / (scale if back else np.float32(1)),
    }
    made.graph.initializer.extend(onnx.numpy_helper.from_array(x, name) for name, x in weights.items())
    return made


def test_equalized_channels_are_no_error() -> None:
    """What one layer scales and the next takes back; where it does not, the first layer is broken."""
    data = np.random.default_rng(1).standard_normal((20, 3, 5, 5), dtype=np.float32)
    factors = np.array([1, 8, 0.5, 3], np.float32)
    original = depthwise(np.ones(4, np.float32), back=True)
    good = compare_models(original, depthwise(factors, back=True), data=data)
    (row,) = good.tensors
    assert set(row.layers) == {"wide", "deep"}
    assert row.own_db is None or row.own_db > 100
    bad = compare_models(original, depthwise(factors, back=False), data=data)
    assert [row.layers for row in bad.tensors] == [("wide",), ("deep",)]


UNITS = """[stem] c0 = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w0) t0 = Relu(c0)
    [wide1] c1 = Conv(t0, w1) t1 = Relu(c1)
    [deep1] c2 = Conv<group = 32, pads = [1, 1, 1, 1]>(t1, w2) t2 = Relu(c2)
    [back1] t3 = Conv(t2, w3)
    [wide2] c4 = Conv(t3, w4) t4 = Relu(c4)
    [deep2] c5 = Conv<group = 32, pads = [1, 1, 1, 1]>(t4, w5) t5 = Relu(c5)
    [back2] t6 = Conv(t5, w6)
    [wide3] c7 = Conv(t6, w7) t7 = Relu(c7)
    [deep3] c8 = Conv<group = 32, pads = [1, 1, 1, 1]>(t7, w8) t8 = Relu(c8)
    [back3] t9 = Conv(t8, w9) p = GlobalAveragePool(t9) f = Flatten(p) [head] y = Gemm<transB = 1>(f, v)"""


def test_equalized_channels_are_no_error_below_8_bits_either() -> None:
    """There layers before hand on much error, which the factors do not explain."""
    one = {"wide": (32, 8, 1, 1), "deep": (32, 1, 3, 3), "back": (8, 32, 1, 1)}
    shapes = [(8, 3, 3, 3), *(one[kind] for _ in range(3) for kind in ("wide", "deep", "back"))]
    rng = np.random.default_rng(0)
    model = fill(
        parse(UNITS, "float[N,3,16,16] x"), {**{f"w{n}": shape for n, shape in enumerate(shapes)}, "v": (5, 8)}
    )
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "w4", "w7"):  # channels of different ranges, as BatchNormalization leaves them
            values = onnx.numpy_helper.to_array(tensor) * np.exp2(rng.uniform(-3, 3, (32, 1, 1, 1)))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    data = rng.standard_normal((16, 3, 16, 16), dtype=np.float32)
    asked = {"bits": "4/4", "method": "nearest", "reduce_range": True, "device": "cpu"}
    made = quantize(model, calib=data, options={"equalize_channels": True}, **asked)  # type: ignore[arg-type]
    equalized = set(made.report.settings["equalized_tensors"])
    assert len(equalized) == 3
    rows = compare_models(model, made.model, data=data).tensors
    assert not equalized & {row.tensor for row in rows}
    assert min(row.own_db for row in rows if row.own_db is not None) > 10


def test_only_so_many_samples_are_taken(files: dict[QuantFormat, onnx.ModelProto], images: NDArray[Any]) -> None:
    assert compared(files[QuantFormat.QDQ], images, samples=5).images == 5
    with pytest.raises(OptionError, match="--samples 0: expected a whole number, 1 or more"):
        compared(files[QuantFormat.QDQ], images, samples=0)


def test_files_that_do_not_belong_together_are_refused(images: NDArray[Any]) -> None:
    other = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3] other) => (float[N,3] y) { y = Relu(other) }"""
    )
    with pytest.raises(ModelError, match="the inputs of the two files do not fit each other"):
        compared(other, images)


def test_torch_is_not_needed() -> None:
    code = "import sys, pdq_export.commands.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("short_search")
def test_a_qonnx_file_is_compared_by_its_integers(images: NDArray[Any]) -> None:
    made = quantize(MODEL, calib=images, method="nearest", target="qonnx", device="cpu")
    found, other = (compared(file, images, samples=8) for file in (made.model, convert(made.model, "ort")))
    measured = [[dataclasses.replace(row, remedy=None) for row in one.tensors] for one in (found, other)]
    assert measured[0] == measured[1]
    assert found.remedies[0].line == "--method pdq"  # no activations of 8 bits, which cost where bits are bits
    assert other.remedies[0].line == "--bits 4/8"


@pytest.mark.usefixtures("short_search")
def test_quant_nodes_of_another_tool_and_in_the_fp32_file_are_refused(images: NDArray[Any]) -> None:
    made = quantize(MODEL, calib=images, method="nearest", target="qonnx", device="cpu").model
    with pytest.raises(ModelError, match="expected the FP32 file"):
        compare_models(made, made, data=images)
    del made.metadata_props[:]
    with pytest.raises(
        ModelError, match="which are compared as what --target ort writes of them; expected a file that"
    ):
        compared(made, images)
