"""What a file says about the onnxruntime that it needs, and that onnxruntime's own format can hold it."""

from pathlib import Path

import onnx
import onnxruntime
import pytest

from pdq_export.errors import OptionError
from pdq_export.export.runtimes import (
    KEY,
    OLDEST,
    check_runtime,
    min_onnxruntime,
    moves_integers,
    newest_opset,
    parse_version,
    shown,
)
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


def test_versions_are_read_and_compared_by_major_and_minor() -> None:
    assert [parse_version(text) for text in ("1.15", "1.23.2", "1.100", "2.0")] == [(1, 15), (1, 23), (1, 100), (2, 0)]
    assert shown(parse_version("1.23.2")) == "1.23"


@pytest.mark.parametrize(
    ("version", "opset"),
    [("1.15", 18), ("1.16", 19), ("1.20", 21), ("1.22", 22), ("1.23", 23), ("1.24", 25), ("1.25", None), ("2.0", None)],
)
def test_the_newest_opset_of_a_version_is_one_that_asks_for_no_newer(version: str, opset: int | None) -> None:
    assert newest_opset(parse_version(version)) == opset
    if opset is not None:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g (float x) => (float y) {{}}')
        assert parse_version(min_onnxruntime(model)) <= parse_version(version)


def average(opset: int, attributes: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[1,1,6,6] x) => (float[1,1,4,4] y) {{
        [pool] y = AveragePool<kernel_shape=[3,3], strides=[2,2], {attributes}>(x)
    }}""")


@pytest.mark.parametrize(
    ("opset", "attributes", "version"),
    [
        (18, "pads=[1,1,1,1], ceil_mode=1, count_include_pad=1", "1.29"),
        (19, "pads=[1,1,1,1], ceil_mode=1, count_include_pad=1", "1.25"),
        (18, "ceil_mode=1, count_include_pad=1", "1.29"),
        (19, "pads=[1,1,1,1], count_include_pad=1", "1.25"),
        (19, 'auto_pad="SAME_UPPER", count_include_pad=1', "1.25"),
        (19, "count_include_pad=1", "1.16"),
        (18, "pads=[1,1,1,1], count_include_pad=1", "1.15"),
        (18, "pads=[1,1,1,1], ceil_mode=1", "1.15"),
        (19, "pads=[1,1,1,1], ceil_mode=1", "1.16"),
    ],
)
def test_averages_that_older_versions_compute_wrongly(opset: int, attributes: str, version: str) -> None:
    model = average(opset, attributes)
    assert min_onnxruntime(model) == version
    check_runtime(model, version)
    if parse_version(version) > OLDEST:
        with pytest.raises(OptionError, match=f"needs onnxruntime {version}; .* or give --runtime {version}"):
            check_runtime(model, "1.15.1")


PAIRS = """<ir_version: 8, opset_import: ["": 13]> g (float[1,4,4,4] x) => (float[N,C,H,W] y OUTPUTS)
<float s = {1.0}, float t = {2.0}, uint8 z = {0}, uint8 h = {15}>
{ q = QuantizeLinear(x, s, z) INTEGERS d = DequantizeLinear(k, s, z) [act] r = OP(d)
  p = QuantizeLinear(r, t, z) y = DequantizeLinear(p, t, z) READER }"""


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({}, "1.19"),
        ({"OP": "Clip"}, "1.19"),
        ({"OP": "LeakyRelu"}, "1.15"),
        ({"INTEGERS": "k = Clip(q, z, h)"}, "1.15"),
        ({"READER": "u = Sigmoid(d)", "OUTPUTS": ", float[N,C,H,W] u"}, "1.15"),
        ({"OUTPUTS": ", float[N,C,H,W] r"}, "1.15"),
    ],
)
def test_pairs_in_a_row_that_older_versions_make_one_of(changes: dict[str, str], version: str) -> None:
    text = PAIRS
    for name, default in (("OP", "Relu"), ("INTEGERS", ""), ("READER", ""), ("OUTPUTS", "")):
        text = text.replace(name, changes.get(name, default))
    model = onnx.parser.parse_model(text if "INTEGERS" in changes else text.replace("(k, s, z)", "(q, s, z)"))
    assert min_onnxruntime(model) == version
    if version == "1.19":
        with pytest.raises(OptionError, match=r"node 'act' .* leave it in float with --exclude '\^act\$', or give"):
            check_runtime(model, "1.18")


MOVED = """<ir_version: 8, opset_import: ["": 13]> g (float[1,4,4,4] x) => (float[N,C,H,W] y)
<float s = {1.0}, uint8 z = {0}, int64[4] c = {1, 4, 4, 4}>
{ q = QuantizeLinear(x, s, z) r = Reshape(q, c) [move] m = OP<blocksize=2>(r) y = DequantizeLinear(m, s, z) }"""
IN_FLOAT = """<ir_version: 8, opset_import: ["": 13]> g (float[1,4,4,4] x) => (float[N,C,H,W] y)
<float s = {1.0}, uint8 z = {0}>
{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) [move] y = OP<blocksize=2>(d) }"""


@pytest.mark.parametrize(("op_type", "version"), [("DepthToSpace", "1.21"), ("SpaceToDepth", "1.28")])
def test_integers_that_older_versions_do_not_move(op_type: str, version: str) -> None:
    moved, in_float = (onnx.parser.parse_model(text.replace("OP", op_type)) for text in (MOVED, IN_FLOAT))
    assert (min_onnxruntime(moved), min_onnxruntime(in_float)) == (version, "1.15")
    with pytest.raises(OptionError, match=rf"--runtime 1.20: node 'move' \({op_type}\) of UINT8 needs onnxruntime"):
        check_runtime(moved, "1.20")
    assert moves_integers(op_type, parse_version(version))
    assert not moves_integers(op_type, OLDEST)
    assert moves_integers("Transpose", OLDEST)


@pytest.mark.parametrize(
    ("nodes", "version"),
    [
        ("a = Cast<to=3>(w) b = Add(a, v)", "1.22"),
        ("a = Cast<to=6>(w) b = Add(a, a)", "1.15"),
        ("a = Reshape(v, c) b = Sub(a, v)", "1.22"),
        ("a = ConstantOfShape<value = int8[1] {0}>(c) b = Sub(a, a)", "1.22"),
        ("a = ConstantOfShape(c) b = Add(a, a)", "1.15"),
        ("a = Shape(v) b = Add(a, a)", "1.15"),
    ],
)
def test_arithmetic_of_bytes_is_known_by_the_types_that_constants_bring(nodes: str, version: str) -> None:
    text = '<ir_version: 8, opset_import: ["": 14]> g () => (float[N] b) <uint8[1] w = {1}, int8[1] v = {1}, int64[1] '
    assert min_onnxruntime(onnx.parser.parse_model(text + f"c = {{1}}> {{ {nodes} }}")) == version


def test_what_asks_for_more_than_the_opset_is_told_first() -> None:
    """Types bring their opset along, and another opset alone would not help."""
    with pytest.raises(OptionError, match=r"--runtime 1\.15: .* of UINT4 needs onnxruntime 1\.31; .* --target ort"):
        check_runtime(export("residual", "4/4", "native"), "1.15")
    with pytest.raises(OptionError, match=r"opset 20 needs onnxruntime 1\.17; .* export the model with opset 18"):
        check_runtime(average(20, "pads=[1,1,1,1]"), "1.15")


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
