"""What a file says about the onnxruntime that it needs, and that onnxruntime's own format can hold it."""

from pathlib import Path

import onnx
import onnxruntime
import pytest

from pdq_export.export.runtimes import KEY, min_onnxruntime
from pdq_export.validate import Comparison, validate

from ..installed import onnxruntime_is
from .test_layouts_agree import export, feeds


@pytest.mark.parametrize(
    ("bits", "target", "version"),
    [
        ("8/8", "ort", "1.18"),  # the network's own opset is 21
        ("4/4", "ort", "1.15"),
        ("2/2", "ort", "1.15"),
        ("8/8", "native", "1.18"),
        ("4/8", "native", "1.20"),
        ("4/4", "native", "1.31"),
        ("2/2", "native", "1.31"),
        ("2/2", "qcdq", "1.15"),
    ],
)
def test_the_lowest_version_is_in_the_metadata(bits: str, target: str, version: str) -> None:
    model = export("residual", bits, target)
    if version == "1.18":
        model.opset_import[0].version = 21
        assert min_onnxruntime(model) == version
        return
    assert min_onnxruntime(model) == version
    assert {entry.key: entry.value for entry in model.metadata_props}[KEY] == version


@pytest.mark.parametrize(
    ("opset", "attributes", "version"),
    [
        (18, "ceil_mode=1, count_include_pad=1", "1.29"),
        (19, "ceil_mode=1, count_include_pad=1", "1.25"),
        (19, "count_include_pad=1", "1.25"),
        (18, "count_include_pad=1", "1.15"),
        (18, "ceil_mode=1", "1.15"),
        (19, "ceil_mode=1", "1.16"),
    ],
)
def test_averages_that_older_versions_compute_wrongly(opset: int, attributes: str, version: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[1,1,6,6] x) => (float[1,1,4,4] y) {{
        y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], {attributes}>(x)
    }}"""
    assert min_onnxruntime(onnx.parser.parse_model(text)) == version


@pytest.mark.parametrize("bits", ["8/8", "4/4", "2/2"])
@pytest.mark.parametrize("target", ["ort", "qcdq"])
@pytest.mark.parametrize("name", ["residual", "concat", "attention"])
def test_the_format_of_onnxruntime_holds_it(
    name: str, target: str, bits: str, tmp_path: Path, small_weights_are_packed: None
) -> None:
    """As ``convert_onnx_models_to_ort --optimization_style Runtime`` saves it, for a runtime that fuses later."""
    if target == "qcdq" and not onnxruntime_is("1.30"):
        pytest.skip("this onnxruntime gives two nodes one name when it stores a Conv of QCDQ, and refuses that")
    path, model = str(tmp_path / "model.ort"), export(name, bits, target).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = path
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("optimization.minimal_build_optimizations", "save")
    x = feeds(name)
    expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, x)[0]
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    stored = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, x)[0]
    assert abs(stored - expected).max() <= 1e-5 * abs(expected).max()


@pytest.mark.parametrize(("installed", "reuses"), [("1.24.1", False), ("1.30.0", False), ("1.31.0", True)])
def test_older_versions_keep_the_memory_of_4_bit_tensors(
    installed: str, reuses: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Which up to 1.30 was used again for tensors of 8 bits."""
    seen = []
    load = onnxruntime.InferenceSession

    def keep(model, options, **more):
        seen.append(options.enable_mem_reuse)
        return load(model, options, **more)

    native, ort = (export("residual", "4/4", target).SerializeToString() for target in ("native", "ort"))
    monkeypatch.setattr(onnxruntime, "__version__", installed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", keep)
    x = feeds("residual")["x"]
    validate(Comparison(original=ort, quantized=native, batches=lambda: [x]))
    assert seen.count(False) == (0 if reuses else len(seen) - 1)  # the session of the other layout alone reuses it
    assert ("SessionOptions.enable_mem_reuse = False" in caplog.text) is not reuses
