"""`pdq-export validate`: what is printed and written, exit codes, and the jobs that docs and recipes show."""

import importlib.util
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import junitparser
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from pdq_export.cli import app
from pdq_export.validate import KernelCount

from .fakes import make_report

ROOT = Path(__file__).resolve().parents[2]
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,4,4] x) => (float[N,4] scores) {
    pooled = GlobalAveragePool(x)
    flat = Flatten(pooled)
    scores = MatMul(flat, v)
}"""
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((3, 4), dtype=np.float32)
IMAGES = RNG.standard_normal((200, 3, 4, 4), dtype=np.float32)

Run = Callable[..., Result]


def model(weight: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(TEXT)
    made.graph.initializer.append(onnx.numpy_helper.from_array(weight, "v"))
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with an FP32 file, a good and a bad other one, and labelled images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    onnx.save(model(WEIGHT), "model.onnx")
    onnx.save(model(WEIGHT.astype(np.float16).astype(np.float32)), "good.onnx")
    onnx.save(model(WEIGHT[:, ::-1].copy()), "bad.onnx")
    np.savez("test.npz", images=IMAGES, labels=(IMAGES.mean((2, 3)) @ WEIGHT).argmax(1))
    (tmp_path / "own.py").write_text(
        "def right(outputs, labels): return (outputs['scores'].argmax(1) == labels).mean()\n"
    )
    return tmp_path


def validate(quantized: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["validate", "model.onnx", quantized, "--data", "test.npz", *arguments])


GATES = ("--max-drop", "1", "--min-agreement", "95", "--min-sqnr", "40", "--max-size-ratio", "1.5")


@pytest.mark.usefixtures("place")
def test_a_good_file_passes() -> None:
    result = validate("good.onnx", *GATES)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert "top-1 accuracy 100.00 % 100.00 % +0.00 points".split() in rows
    assert "argmax agrees with FP32 100.00 %".split() in rows
    assert sum(line.startswith("passed: --") for line in result.stdout.splitlines()) == 4
    assert result.stdout.startswith("200 images of test.npz")


@pytest.mark.usefixtures("place")
def test_a_bad_file_fails_and_everything_is_written(place: Path) -> None:
    written = ("--junit", "g.xml", "--markdown", "g.md", "--report", "g.json")
    result = validate("bad.onnx", *GATES, *written)
    assert result.exit_code == 1, result.output
    failed = [line for line in result.output.splitlines() if "failed" in line.lower()]  # once, on stdout
    assert [line.split()[1] for line in failed] == ["--max-drop", "--min-agreement", "--min-sqnr"]
    assert "FAILED: --max-drop 1: top-1 falls by" in result.stdout
    assert sum(line.startswith("wrote ") for line in result.stdout.splitlines()) == 3
    report = json.loads((place / "g.json").read_text())
    assert [gate["passed"] for gate in report["gates"]] == [False, False, False, True]
    (suite,) = junitparser.JUnitXml.fromfile(str(place / "g.xml"))
    assert (suite.name, suite.tests, suite.failures, suite.errors) == ("bad.onnx", 4, 3, 0)
    assert [case.name for case in suite] == ["--max-drop", "--min-agreement", "--min-sqnr", "--max-size-ratio"]
    assert [case.is_passed for case in suite] == [False, False, False, True]
    assert (place / "g.md").read_text().startswith("### bad.onnx: 3 of 4 gates failed\n")


@pytest.mark.usefixtures("place")
def test_json_is_the_report(place: Path) -> None:
    result = validate("bad.onnx", "--max-drop", "1", "--json", "--report", "g.json")
    assert result.exit_code == 1
    assert result.stdout == (place / "g.json").read_text()


@pytest.mark.usefixtures("place")
def test_what_exists_is_replaced_by_request_alone(place: Path) -> None:
    (place / "g.md").write_text("mine")
    result = validate("good.onnx", "--markdown", "g.md", "--report", "g.json")
    assert result.exit_code == 2
    assert "g.md: exists already; choose another name, or replace it with --overwrite" in result.stderr
    assert (place / "g.md").read_text() == "mine"
    assert not (place / "g.json").exists()
    assert validate("good.onnx", "--markdown", "g.md", "--overwrite").exit_code == 0
    assert "top-1 accuracy" in (place / "g.md").read_text()


@pytest.mark.usefixtures("place")
def test_metrics_of_the_current_folder() -> None:
    gates = ("--metric", "own:right", "--min-metric", "right=0.9", "--max-metric-drop", "right=0.05")
    result = validate("good.onnx", *gates)
    assert result.exit_code == 0, result.output
    assert "passed: --min-metric right=0.9: right is 1" in result.stdout
    assert validate("bad.onnx", *gates).exit_code == 1


@pytest.mark.usefixtures("place")
def test_gates_of_a_file(place: Path) -> None:
    (place / "gates.toml").write_text("[gates]\nmax_drop = 1\nno_float_layers = true\n")
    result = validate("good.onnx", "--config", "gates.toml")
    assert result.exit_code == 1
    assert "FAILED: --no-float-layers: 1 of 1 layers run in float" in result.stdout
    assert validate("good.onnx", "--config", "gates.toml", "--float-layers").exit_code == 0
    assert validate("good.onnx", "--config", "gates.toml", "--unset", "no_float_layers").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-drop", "much"), "Invalid value for '--max-drop'"),
        (("--metric", "own:wrong", "--min-metric", "wrong=1"), "has no 'wrong'; expected MODULE:FUNCTION"),
        (("--metric", "own:right", "--min-metric", "rigth=1"), "no metric gives 'rigth'; expected one of right"),
        (("--min-metric", "right=1"), "--metric is not given"),
        (("--bits", "4/4"), "No such option"),
        (("--batch-size", "0"), "--batch-size 0: expected a whole number, 1 or more"),
        (("--junit", "g.xml"), "there is no gate to tell of"),
    ],
)
def test_wrong_options_are_one_line(place: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(path.name for path in place.iterdir())
    result = validate("good.onnx", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if "error" in line]) == 1
    assert "Traceback" not in result.output
    assert [name for name in sorted(path.name for path in place.iterdir()) if name != "__pycache__"] == before


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["validate", "--help"])
    assert result.exit_code == 0
    assert "pdq-export validate model.onnx model-int8.onnx --data test.npz" in result.stdout
    assert "--no-float-layers / --float-layers" in result.stdout


@pytest.fixture
def environment(place: Path) -> dict[str, str]:
    """Variables for a shell that finds ``pdq-export``."""
    program = place / "bin" / "pdq-export"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pdq_export "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "GITHUB_STEP_SUMMARY": str(place / "summary.md")}


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(("quantized", "status"), [("good.onnx", 0), ("bad.onnx", 1), ("none.onnx", 2)])
def test_the_recipe_for_any_ci(place: Path, environment: dict[str, str], quantized: str, status: int) -> None:
    script = ROOT / "recipes" / "ci" / "gate.sh"
    command = ["sh", str(script), "model.onnx", quantized, "test.npz", "--max-drop", "1", "--confidence", "95"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    written = {"gates.xml", "gates.md", "gates.json", "summary.md"}
    assert written & {path.name for path in place.iterdir()} == (set() if status == 2 else written)
    if status == 2:
        assert "gate.sh: none.onnx could not be judged" in done.stderr
    else:
        assert (place / "summary.md").read_text() == (place / "gates.md").read_text()


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(("quantized", "status"), [("good.onnx", 0), ("bad.onnx", 1)])
def test_the_job_for_github(place: Path, environment: dict[str, str], quantized: str, status: int) -> None:
    """The commands of the job as they stand there, with files of those names."""
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    (job,) = re.findall(r"```yaml\n.*?(name: quantized model.*?)```", text, re.DOTALL)
    (judge,) = re.findall(r"run: \|\n(.*?)      - if", job, re.DOTALL)
    (summary,) = re.findall(r"run: (cat .*)", job)
    (place / quantized).rename(place / "model-int8.onnx")
    judged = judge
    for said, here in (("ratio 0.35", "ratio 1.5"), ("--no-float-layers", ""), ("calib_data/eval.npz", "test.npz")):
        assert said in judged
        judged = judged.replace(said, here)  # these files have no integers
    for command, expected in ((judged, status), (summary, 0)):
        done = subprocess.run(["sh", "-c", command], cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
    assert "gates failed" in (place / "summary.md").read_text() or not status


@pytest.mark.usefixtures("place")
def test_what_runs_in_float_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = KernelCount(
        integer={"QLinearConv": 5}, floating={"Conv": 2}, floating_nodes=("a", "b"), between_pairs={"Add": 3}
    )
    settings = {"evaluation": "test.npz", "renamed": {"x": "image"}, "command": "validate"}
    monkeypatch.setattr(
        "pdq_export.commands.validate.validate_models", lambda *_, **__: make_report(kernels=kernels, settings=settings)
    )
    lines = validate("good.onnx").stdout.splitlines()
    assert "x is image in the quantized file" in lines
    assert "layers that run in float: 2 Conv (a, b)" in lines
    assert "others that run in float between quantized tensors: 3 Add" in lines


def test_modules_are_looked_for_here_only_while_a_named_one_is_imported(place: Path) -> None:
    """Not what other packages would try to import: a file of the current folder may have that name."""
    assert str(place) not in sys.path
    (place / "sees.py").write_text(
        "import sys, os\nfrom helps import value\nassert os.getcwd() in sys.path\n"
        "def found(outputs, labels): return value\n"
    )
    (place / "helps.py").write_text("value = 7\n")
    result = validate("good.onnx", "--metric", "sees:found", "--min-metric", "found=7")
    assert result.exit_code == 0, result.output
    assert str(place) not in sys.path
    (place / "unwanted.py").write_text("raise SystemExit('imported')\n")
    result = validate("good.onnx")
    assert result.exit_code == 0, result.output
    assert importlib.util.find_spec("unwanted") is None
    for name in ("sees", "helps"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("place")
def test_the_module_of_a_function_is_not_replaced() -> None:
    Path("kept.py").write_text("def right(outputs, labels): return 1\n")
    before = Path("kept.py").read_bytes()
    result = validate("good.onnx", "--metric", "kept:right", "--report", "kept.py", "--overwrite")
    assert result.exit_code == 2
    assert "kept.py: is the same file as the input" in result.output
    assert Path("kept.py").read_bytes() == before
