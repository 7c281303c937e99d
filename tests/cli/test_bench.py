"""`pdq-export bench`: what is printed, exit codes, messages."""

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from pdq_export.cli import app


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, body in (("a", "y = Relu(x)"), ("b", "z = Relu(x) y = Neg(z)")):
        text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,H,W] x) => (float[N,3,H,W] y) {{ {body} }}'
        onnx.save(onnx.parser.parse_model(text), f"{name}.onnx")
    return tmp_path


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments, "--seconds", "0", "--shape", "x=1x3x8x8"])


def test_the_tables() -> None:
    result = bench("a.onnx", "b.onnx", "--batch", "1", "--batch", "8", "--loads", "1")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows if row[:1] in (["1"], ["8"])] == [
        ["1", "a.onnx"],
        ["1", "b.onnx"],
        ["8", "a.onnx"],
        ["8", "b.onnx"],
    ]
    assert sum(row[:1] == ["b.onnx"] for row in rows) == 2
    for told in (
        "one thread",
        "load average",
        "random input x: batch x 3 x 8 x 8",
        "within the spread",
        "onnxruntime 1.",
    ):
        assert told in result.stdout
    assert "medians of 1 fresh processes" in result.stdout
    assert "p95: of fewer than 20 calls there is none" in result.stdout


def test_one_file_has_no_ratios() -> None:
    result = bench("a.onnx", "--loads", "0", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "×" not in result.stdout
    assert "2 threads" in result.stdout
    assert "latency is wall time, which counts" in result.stdout


def test_json_and_quiet() -> None:
    result = bench("a.onnx", "b.onnx", "--json", "--loads", "0")
    assert result.exit_code == 0
    fields = json.loads(result.stdout)
    assert [file["name"] for file in fields["files"]] == ["a.onnx", "b.onnx"]
    assert bench("a.onnx", "--loads", "0", "-q").output == ""


def test_sizes_by_default_are_told() -> None:
    result = CliRunner().invoke(app, ["bench", "a.onnx", "--seconds", "0", "--loads", "0"])
    assert (
        "random input x: batch x 3 x 224 x 224, tensor(float); sizes by default, --shape gives others" in result.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'A.onnx [B.onnx ...]'"),
        (("none.onnx",), "none.onnx: no such file; expected an ONNX model"),
        (("a.onnx", "--batch", "1", "8"), "several batch sizes are --batch 1 --batch 8"),
        (("a.onnx", "--batch", "0"), "--batch 0: expected a whole number, 1 or more"),
        (("a.onnx", "--shape", "x=1x0"), "--shape 'x=1x0': expected NAME=SIZES, as x=1x3x224x224"),
        (("a.onnx", "--shape", "x=1x3x4x4"), "is given twice for 'x'"),
        (("a.onnx", "--threads", "0"), "--threads 0: expected a whole number, 1 or more"),
        (("a.onnx", "--seconds", "much"), "Invalid value for '--seconds'"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "--shape", "x=1x3x8x8", *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if "error" in line]) == 1
    assert "Traceback" not in result.output


def test_a_file_with_other_inputs_is_named() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,5] other) => (float[N,5] y) { y = Relu(other) }'
    onnx.save(onnx.parser.parse_model(text), "c.onnx")
    result = bench("a.onnx", "c.onnx")
    assert result.exit_code == 2
    assert "c.onnx beside a.onnx: the inputs of the two files do not fit each other" in result.stderr


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["bench", "--help"])
    assert "pdq-export bench model.onnx model-8-8.onnx model-4-4.onnx --batch 1 --batch 8" in result.stdout
    assert "pdq_export.commands.benchmark" in result.stdout
