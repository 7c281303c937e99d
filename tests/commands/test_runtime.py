"""``--runtime``: what is written for a version of onnxruntime, what is refused, and what the files say of it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import calib_data
import pdq_export
from pdq_export import inspect_model
from pdq_export.errors import ModelError, OptionError
from pdq_export.export import Packing, read_blueprint
from pdq_export.graph.load import load_model
from pdq_export.validate import Session, min_onnxruntime

from ..onnx_text import fill, name_nodes, parse

pytestmark = pytest.mark.usefixtures("short_search")

EMBEDDED = calib_data.path("fashion_resnet.onnx")
FAST: dict[str, Any] = {"calib": calib_data.path("calib.npz"), "method": "nearest", "device": "cpu"}
FAST["options"] = {"samples": 8, "search_samples": 8}
# Folders of versions that are installed with ``pip install --target``, separated as in PATH.
OTHERS = os.environ.get("PDQ_EXPORT_ONNXRUNTIMES", "")
# Depth to space and back between layers: not every onnxruntime moves UINT8 so.
MOVES = """c = Conv(image, w) r = Relu(c) d = DepthToSpace<blocksize = 2>(r) s = SpaceToDepth<blocksize = 2>(d)
    e = Conv(s, u) z = Relu(e) p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB = 1>(f, v)"""
SHAPES = {"w": (16, 3, 3, 3), "u": (16, 16, 1, 1), "v": (5, 16)}
# Layers that share a weight, as the heads of detectors do.
SHARES = """c = Conv<pads = [1, 1, 1, 1]>(image, w) r = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(r, u) s = Relu(d)
    e = Conv<pads = [1, 1, 1, 1]>(s, u) z = Relu(e) p = GlobalAveragePool(z) f = Flatten(p)
    y = Gemm<transB = 1>(f, v)"""


def quantize(model: Any = EMBEDDED, **fields: Any) -> pdq_export.Result:
    return pdq_export.quantize(model, **{**FAST, **fields})


def content(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def moving(opset: int = 17) -> onnx.ModelProto:
    return name_nodes(fill(parse(MOVES, opset=opset), SHAPES))


def sharing() -> onnx.ModelProto:
    return name_nodes(fill(parse(SHARES), {**SHAPES, "u": (16, 16, 3, 3)}))


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("bits", "runtime", "opset", "lowest", "leaner"),
    [
        ("2/2", None, 17, "1.15", False),
        ("2/2", "1.15", 17, "1.15", False),
        ("2/2", "1.23", 17, "1.15", False),
        ("2/2", "1.24.1", 25, "1.24", True),
        ("4/4", "1.23", 21, "1.23", True),
        ("3/3", "1.31", 17, "1.15", False),
    ],
)
def test_the_leanest_form_of_a_version_is_written(
    bits: str, runtime: str | None, opset: int, lowest: str, leaner: bool
) -> None:
    found = inspect_model(EMBEDDED, bits=bits, runtime=runtime)
    told = found.to_dict()
    assert (told["problems"], told["settings"]["opset"], told["min_onnxruntime"]) == ([], opset, lowest)
    assert (told["loading"]["unpacking"] < told["loading"]["portable"]) == leaner
    assert told["settings"].get("runtime") == runtime


def test_a_file_says_which_version_was_asked_for_and_comes_back_byte_for_byte() -> None:
    plain, lean = quantize(bits="4/4").model, quantize(bits="4/4", runtime="1.23").model
    assert [min_onnxruntime(content(model)) for model in (plain, lean)] == ["1.15", "1.23"]
    assert [read_blueprint(model).quantized.packing for model in (plain, lean)] == [Packing.BYTES, Packing.TYPES]
    properties = {entry.key: entry.value for entry in lean.metadata_props}
    assert json.loads(properties["pdq_export.config"])["runtime"] == "1.23"
    assert json.loads(properties["pdq_export.options"])["runtime"] == "1.23"
    for target, model in (("native", plain), ("qcdq", plain), ("qcdq", lean)):
        assert content(pdq_export.convert(pdq_export.convert(model, target), "ort")) == content(model)
    native = pdq_export.convert(lean, "native", runtime="1.31")  # 1.23 does not run it
    assert pdq_export.convert(native, "ort", runtime="1.23").graph == lean.graph
    leaner, back = pdq_export.convert(plain, "ort", runtime="1.23"), pdq_export.convert(lean, "ort", runtime="1.15")
    assert (leaner.graph, leaner.opset_import) == (lean.graph, lean.opset_import)
    assert (back.graph, back.opset_import) == (plain.graph, plain.opset_import)
    assert content(pdq_export.convert(pdq_export.convert(back, "native"), "ort")) == content(back)


def test_what_a_version_does_not_run_is_refused_before_calibration() -> None:
    message = r"--runtime 1\.23: node .*QuantizeLinear.* of UINT4 needs onnxruntime 1\.31; .* --target ort"
    stages: list[str] = []
    with pytest.raises(OptionError, match=message):
        quantize(target="native", runtime="1.23", progress=lambda progress: stages.append(progress.stage))
    assert set(stages) <= {"load", "plan", "read", "check"}
    (problem,) = inspect_model(EMBEDDED, target="native", runtime="1.23").problems
    assert problem.startswith("--runtime 1.23: node ")
    assert inspect_model(EMBEDDED, target="native", runtime="1.31").problems == ()
    with pytest.raises(OptionError, match=r"--runtime 1\.23: node .* needs onnxruntime 1\.31"):
        pdq_export.convert(quantize(bits="4/4").model, "native", runtime="1.23")


def test_a_file_is_converted_for_the_version_that_it_was_written_for() -> None:
    written = quantize(bits="4/4", runtime="1.23").model
    with pytest.raises(OptionError, match=r"written with --runtime 1\.23: node .* needs .*give --runtime 1\.31"):
        pdq_export.convert(written, "native")
    assert min_onnxruntime(content(pdq_export.convert(written, "native", runtime="1.31"))) == "1.31"
    pdq_export.convert(written, "qonnx")  # onnxruntime does not run it in any version


def test_a_model_of_a_newer_opset_is_refused_and_its_file_is_converted() -> None:
    model, x = name_nodes(fill(parse(MOVES, opset=20), SHAPES)), images()
    with pytest.raises(OptionError, match=r"convert FILE --target ort --runtime 1\.15"):
        quantize(model, calib=x, runtime="1.15")
    written = quantize(model, calib=x, bits="4/4").model
    older = pdq_export.convert(written, "ort", runtime="1.15")
    assert [min_onnxruntime(content(file)) for file in (written, older)] == ["1.17", "1.15"]


@pytest.mark.parametrize("opset", [None, 20])
def test_a_version_and_a_newest_opset_go_together(opset: int | None) -> None:
    """The lower of both counts; without types of few bits weights lie in bytes."""
    found = inspect_model(EMBEDDED, bits="4/4", runtime="1.23", opset=opset)
    assert (found.settings["opset"], found.min_onnxruntime) == ((21, "1.23") if opset is None else (17, "1.15"))


def test_targets_for_other_runtimes_take_no_version() -> None:
    message = "--runtime 1.23: is a version of onnxruntime, and --target tensorrt is for another runtime; leave the "
    with pytest.raises(OptionError, match=message):
        inspect_model(EMBEDDED, target="tensorrt", runtime="1.23", bits="8/8")
    with pytest.raises(
        OptionError, match=r"--runtime '1\.2': expected a version of onnxruntime as text, 1\.15 or newer"
    ):
        pdq_export.convert(quantize(bits="4/4").model, "ort", runtime="1.2")


def test_what_would_take_too_much_is_written_for_newer_ones_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pdq_export.commands.dry_run")
    silent = quantize(bits="4/4")
    assert "--runtime" not in caplog.text
    assert min_onnxruntime(content(silent.model)) == "1.15"
    loading = silent.report.settings["loading"]
    assert loading["unpacking"] == loading["portable"] > 0
    limit = loading["portable"] // 10
    monkeypatch.setattr("pdq_export.export.loading.PORTABLE_LIMIT", limit)
    result = quantize(bits="4/4")
    assert "weights are stored in types that onnxruntime 1.23 and newer load" in caplog.text
    assert "--runtime 1.15 writes them so" in caplog.text
    assert result.report.min_onnxruntime == min_onnxruntime(content(result.model)) == "1.23"
    lean = result.report.settings["loading"]
    assert lean["portable"] == loading["portable"] > lean["unpacking"] + limit
    # A file of another target is for the same version when it is one of ort again.
    native = quantize(bits="4/4", target="native")
    assert content(pdq_export.convert(native.model, "ort")) == content(result.model)
    assert pdq_export.convert(result.model, "ort", runtime="1.15").graph == silent.model.graph


def test_integers_that_not_every_version_moves_are_moved_in_float() -> None:
    """A pair gives the same integers again, so that file and simulation agree as they do elsewhere."""
    result = quantize(moving(), bits="8/8", calib=images(), reduce_range=True)
    index = {node.op_type: node for node in result.model.graph.node}
    producers = {name: node.op_type for node in result.model.graph.node for name in node.output}
    for op_type in ("DepthToSpace", "SpaceToDepth"):
        assert producers[index[op_type].input[0]] == "DequantizeLinear"
    assert min_onnxruntime(content(result.model)) == "1.15"
    (output,) = result.report.outputs
    assert output.quantized_simulated is not None
    assert output.quantized_simulated.max_relative_error < 1e-5


def test_an_opset_that_cannot_be_had_for_types_leaves_weights_in_bytes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("node 'n' (Old): opset 17 cannot be converted to 21")

    monkeypatch.setattr("pdq_export.work.at_opset", fail)
    found = inspect_model(EMBEDDED, bits="4/4", runtime="1.23")
    assert (found.problems, found.settings["opset"], found.min_onnxruntime) == ((), 17, "1.15")
    assert found.loading is not None
    assert found.loading.unpacking == found.loading.portable
    assert "weights are packed in bytes, which takes more memory to load: node 'n' (Old)" in caplog.text
    with pytest.raises(ModelError, match="cannot be converted to 21"):
        inspect_model(EMBEDDED, bits="4/4", target="native")


WORKER = """
import sys, numpy as np, onnxruntime
x, found = np.load(sys.argv[2]), []
for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    found.append(session.run(None, {session.get_inputs()[0].name: x})[0])
np.save(sys.argv[3], found)
print(onnxruntime.__version__)
"""


@pytest.mark.skipif(not OTHERS, reason="PDQ_EXPORT_ONNXRUNTIMES names no folders with versions of onnxruntime")
@pytest.mark.parametrize("bits", ["8/8", "4/4", "3/3", "2/2"])
@pytest.mark.parametrize("folder", OTHERS.split(os.pathsep))
def test_a_version_loads_what_is_written_for_it(folder: str, bits: str, tmp_path: Path) -> None:
    version = next(Path(folder).glob("onnxruntime-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    for name, model, x in (
        ("embedded", load_model(EMBEDDED), np.random.default_rng(1).normal(size=(4, 1, 28, 28)).astype(np.float32)),
        ("moves", moving(), images(4)),
        ("shares", sharing(), images(4)),
    ):
        fields = {} if name == "embedded" else {"calib": images()}
        written = quantize(model, bits=bits, runtime=version, reduce_range=True, **fields).model
        onnx.save(written, tmp_path / "model.onnx")
        np.save(tmp_path / "x.npy", x)
        arguments = [tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "y.npy"]
        ran = subprocess.run(
            [sys.executable, "-S", "-c", WORKER, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() == version
        (expected,) = Session(content(written), optimize=False).run(x)
        # At 8/8 sums leave what float32 holds exactly, and integers differ by one now and then (docs/layout.md).
        most = np.abs(expected).max() * (0.02 if bits == "8/8" else 1e-5)
        for found in np.load(tmp_path / "y.npy"):
            np.testing.assert_allclose(found, expected, rtol=0, atol=most)
