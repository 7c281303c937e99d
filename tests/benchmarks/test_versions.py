"""The probe in the present environment; what crashes, hangs or is wrong in a runtime is told; environments."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.versions import browser, environments, files, job
from benchmarks.versions.__main__ import Written, main
from benchmarks.versions.environments import Environment, MissingRuntimeError, prepare
from benchmarks.versions.files import File, without_rounding
from benchmarks.versions.job import Attempt, try_files
from benchmarks.versions.table import Cell, Judged, cell, tables

pytestmark = pytest.mark.usefixtures("short_search")

SHORT = ["--networks", "depthwise", "--images", "20"]


def test_what_is_written_is_right_in_the_present_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SHORT, "--runtimes", "present", "--bits", "8/8", "mixed", "--layouts", "ort", "native"]
    written = tmp_path / "cells.json"
    command += ["--rounds", "1", "--seconds", "0", "--json", str(written), "--check"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    cells = json.loads(written.read_text())["cells"]
    assert [(each["layout"], each["bits"]) for each in cells] == [
        ("ort", "8/8"),
        ("native", "8/8"),
        ("ort", "mixed"),
        ("native", "mixed"),
    ]
    for each in cells:
        ways = {tried["way"]: tried for tried in each["ways"]}
        assert len(each["ratios"]) == 2
        if each["layout"] == "ort":
            assert list(ways) == ["default", "disable_all", "basic", "extended"]
            assert all(tried["agreement"] == 1 for tried in ways.values())
            assert ways["default"]["error"] == 0
    assert printed.count("| `ort`") == 2
    assert str(tmp_path) not in written.read_text()


def test_onnxruntimes_own_format_has_rows_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SHORT, "--runtimes", "present", "--bits", "3/4", "--layouts", "ort", "--rounds", "0", "--check"]
    assert main([*command, "--own-format"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| `ort")]
    assert [row.split("|")[1].strip() for row in rows] == ["`ort` 3/4", "`ort, Fixed` 3/4", "`ort, Runtime` 3/4"]
    assert all("| right |" in row for row in rows)


@pytest.fixture
def present(tmp_path: Path) -> Environment:
    return prepare("present", tmp_path)


def _model(path: Path, weight: float = 2) -> Path:
    text = f"""<ir_version: 8, opset_import: ["": 13]>
    g (float[N,3] image) => (float[N,3] scores) <float w = {{{weight}}}> {{ scores = Mul(image, w) }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_a_wrong_file_is_broken_and_one_that_does_not_load_says_why(present: Environment, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    paths = [_model(tmp_path / "right.onnx"), _model(tmp_path / "wrong.onnx", -2), tmp_path / "damaged.onnx"]
    found = try_files(present, [(path, ["default", "basic"]) for path in paths], images)
    says = images.astype(np.float64) * 2
    right, wrong, damaged = (
        cell(
            "net", File(layout="ort", bits="4/4", path=path, runtime="1.15"), "present", tries, says=says, openvino=says
        )
        for path, tries in zip(paths, found, strict=True)
    )
    assert (right.right_way, right.broken, right.told()) == ("default", None, "right")
    assert wrong.right_way is None
    assert "ort 4/4 in present" in str(wrong.broken)
    assert wrong.told() == "**wrong**, 0%, 200%"
    assert damaged.told() == "not loaded"
    assert "default: " in str(damaged.broken)


def test_a_crash_is_one_only_where_nothing_ran_before(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text("""import json, os, sys
for number, file in enumerate(json.load(open(sys.argv[1]))["files"]):
    if "never" in file["path"] or ("later" in file["path"] and number):
        print("it broke", file=sys.stderr, flush=True)
        os.abort()
    print(json.dumps({"version": "1.2", "way": file["ways"][0], "failure": None, "values": [1.0]}), flush=True)
""")
    environment = Environment(runtime="1.2", command=[sys.executable, str(script)])
    asked = [(Path(name), ["default", "basic"]) for name in ("first", "later", "never", "last")]
    found = try_files(environment, asked, np.zeros((1, 1), np.float32))
    assert [[attempt.failure for attempt in attempts] for attempts in found] == [
        [None, None],
        [None, None],
        ["crashed (-6) it broke"] * 2,
        [None, None],
    ]
    assert [attempt.way for attempts in found for attempt in attempts] == ["default", "basic"] * 4


def test_what_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_PATIENCE", 0.5)
    environment = Environment(runtime="1.2", command=[sys.executable, "-c", "import time; time.sleep(60)"])
    ((attempt,),) = try_files(environment, [(Path("f"), ["default"])], np.zeros((1, 1), np.float32))
    assert attempt.failure == "the probe ended (-9) said nothing for too long"


def test_what_is_promised(tmp_path: Path) -> None:
    fields = {"network": "net", "layout": "native", "bits": "4/4", "runtime": "1.20.1", "version": "1.20.1"}
    wrong = [Judged(way="default", agreement=0.1, error=0.9)]
    assert Cell(**fields, needs="1.31", ways=wrong).broken is None
    assert Cell(**fields, needs="1.20", ways=wrong).broken is not None
    helped = [*wrong, Judged(way="disable_quant_qdq", agreement=1, error=0)]
    assert Cell(**fields, needs="1.20", ways=helped).broken is None
    assert Cell(**fields, needs="1.20", ways=helped).told() == "right with `disable_quant_qdq`"
    unstable = [Judged(way="default", agreement=1, error=0), Judged(way="basic", agreement=1, error=0.2)]
    assert "basic: 100.0% of classes, error 2.0e-01" in str(Cell(**fields, needs="1.20", ways=unstable).broken)


def test_openvino_may_sum_more_finely(tmp_path: Path) -> None:
    says, finer = np.eye(4), np.eye(4)[::-1]
    file = File(layout="ort", bits="4/4", path=tmp_path / "f.onnx", runtime="1.15")
    attempts = [Attempt(way="default", version="2026.4.1", values=finer)]
    found = cell("net", file, "openvino", attempts, says=says, openvino=finer)
    assert found.told() == "right but for sums, 0%"
    assert cell("net", file, "newest", attempts, says=says, openvino=finer).right_way is None
    assert "OpenVINO 2026.4.1" in tables([found])


def test_the_pair_between_a_convolution_and_an_add_is_left_out_once() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 13]>
    g (float[N,1,4,4] x, float[1,1,1,1] w, float s, uint8 z) => (float[N,1,4,4] y) {
        a = Conv(x, w)
        a_q = QuantizeLinear(a, s, z)
        a_d = DequantizeLinear(a_q, s, z)
        b = Conv(x, w)
        b_q = QuantizeLinear(b, s, z)
        b_d = DequantizeLinear(b_q, s, z)
        r = Relu(x)
        r_q = QuantizeLinear(r, s, z)
        r_d = DequantizeLinear(r_q, s, z)
        sum = Add(r_d, a_d)
        y = Add(sum, b_d)
    }""")
    adds = [list(node.input) for node in without_rounding(model).graph.node if node.op_type == "Add"]
    assert adds == [["r_d", "a"], ["sum", "b"]]


def test_an_environment_that_cannot_be_had_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingRuntimeError, match=r"1\.15\.1: .* failed .*--python takes another"):
        prepare("1.15.1", tmp_path)
    assert not (tmp_path / "1.15.1").exists()
    nothing = Written(network="depthwise", model=tmp_path / "model.onnx", files=[], references={})
    monkeypatch.setattr("benchmarks.versions.__main__.write", lambda *_: nothing)
    assert main([*SHORT, "--runtimes", "present", "1.15.1", "--environments", str(tmp_path), "--rounds", "0"]) == 1
    assert "1.15.1: " in capsys.readouterr().err


def test_ready_environments_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    (tmp_path / "1.15.1").mkdir()
    (tmp_path / "openvino" / "bin").mkdir(parents=True)
    (tmp_path / "openvino" / "bin" / "python").touch()
    target = prepare("1.15.1", tmp_path, python="python3.11")
    assert target.command[:2] == ["python3.11", "-S"]
    assert environments.environment_variables(target)["PYTHONPATH"] == str(tmp_path / "1.15.1")
    own = prepare("openvino", tmp_path)
    assert own.command[0] == str(tmp_path / "openvino" / "bin" / "python")
    assert "PYTHONPATH" not in environments.environment_variables(own)


@pytest.mark.parametrize("name", ["1.15", "1.15.1", "newest", "web", "chromium", "openvino", "present"])
def test_runtimes_have_names(name: str) -> None:
    assert environments.check_name(name) == name


@pytest.mark.parametrize("name", ["", "1", "../1.15.1", "onnxruntime"])
def test_other_names_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--runtimes", name])
    assert "--runtimes" in capsys.readouterr().err


def test_times_need_what_they_are_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--bits", "4/4"])
    assert "expected it in --bits, or --rounds 0" in capsys.readouterr().err


def test_a_browser_gets_the_page_and_the_files_of_the_job_alone(tmp_path: Path) -> None:
    """A script takes the browser's place: it reads what the page would read and posts what it would post."""
    package = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    package.mkdir(parents=True)
    (package / "ort.wasm.min.mjs").write_text("runtime")
    model = _model(tmp_path / "model.onnx")
    script = tmp_path / "browser"
    script.write_text(f"""#!{sys.executable}
import json, sys, urllib.error, urllib.parse, urllib.request
def get(path):
    try:
        return urllib.request.urlopen(sys.argv[-1] + path).read()
    except urllib.error.HTTPError as error:
        return error.code
job = json.loads(get("job"))
lines = [{{"version": "1.2", "way": file["ways"][0], "failure": None, "values": None}} for file in job["files"]]
sizes = [len(get("file?" + urllib.parse.quote(file["path"], safe=""))) for file in job["files"]]
refused = [get("file?/etc/hostname"), get("runtime/../model.onnx"), get("other")]
served = [b"probe.mjs" in get(""), get("runtime/ort.wasm.min.mjs").decode(), b"tryFiles" in get("probe.mjs")]
lines[0]["failure"] = json.dumps([sizes, refused, served])
body = json.dumps({{"lines": lines, "failure": None}}).encode()
urllib.request.urlopen(sys.argv[-1] + "found", data=body)
""")
    script.chmod(0o755)
    environment = Environment(runtime="chromium", command=[str(script)], folder=tmp_path)
    ((attempt,),) = try_files(environment, [(model, ["default"])], np.zeros((1, 3), np.float32))
    assert json.loads(str(attempt.failure)) == [[model.stat().st_size], [404, 404, 404], [True, "runtime", True]]


def test_a_browser_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "_SECONDS", 0.2)
    environment = Environment(runtime="chromium", command=["/bin/true"], folder=tmp_path)
    with pytest.raises(MissingRuntimeError, match="no result"):
        try_files(environment, [(_model(tmp_path / "model.onnx"), ["default"])], np.zeros((1, 3), np.float32))


def test_classes_differ_between_images(tmp_path: Path) -> None:
    """Or a runtime could compute anything and give the same classes."""
    _, batch = files.images(100)
    scores = files.Session(files.float_model("depthwise", tmp_path)).run(batch)[0]
    assert np.bincount(scores.argmax(axis=1)).max() < 50
