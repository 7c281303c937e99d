"""`pdq-export inspect`: what is printed, as text and as JSON, also of files that mean harm."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

from pdq_export import calib_data
from tests.calibrate.networks import residual

Run = Callable[..., Result]
EMBEDDED = calib_data.path("fashion_resnet.onnx")


def test_the_embedded_model(run: Run) -> None:
    result = run("inspect", EMBEDDED, "--bits", "2/4", "--exclude", "blocks.0/conv1", "--layer-bits", "fc=6/8")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == "fashion_resnet.onnx: opset 17, 12 layers in".split() + lines[0][6:]
    assert "input image: float32 N x 1 x 28 x 28".split() in lines
    assert "BatchNormalization: 11 nodes in the file; statistics known for 11 of 12 layers".split() in lines
    layers = [line[:-1] for line in lines]  # the last column are kB
    assert "1 /conv/Conv Conv 16x1x3x3 8 8 4".split() in layers
    assert "/blocks/blocks.0/conv1/Conv Conv 16x16x3x3 float 4 4".split() in layers
    (size,) = (line[-1] for line in lines if "/blocks/blocks.0/conv1/Conv" in line and "float" in line)
    assert float(size) == pytest.approx(16 * 16 * 9 * 4 / 1000, rel=0.05)
    assert "1 Conv: excluded (/blocks/blocks.0/conv1/Conv)".split() in lines
    assert any(line[1:-1] == "/fc/Gemm Gemm 10x64 6 8 float".split() for line in lines)
    assert "weighted layers that run as integers in onnxruntime: 11 of 12" in result.stdout
    assert "of them saturate on x86 processors without VNNI, unless --reduce-range: 1 (/conv/Conv)" in result.stdout
    assert "(target ort, opset 17)" in result.stdout
    assert "bit operations: × 0." in result.stdout


def test_bits_by_budget(run: Run, folder: Path) -> None:
    example = residual(images=16)
    onnx.save(example.prepared.model, folder / "net.onnx")
    np.save(folder / "calib.npy", example.images.numpy())
    result = run("inspect", "net.onnx", "--bits", "auto", "--max-bit-ops", "0.3", "--calib", "calib.npy")
    assert result.exit_code == 0, result.output
    assert "bits within --max-bit-ops 0.3: " in result.stdout
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("bit operations: ×"))
    assert float(line.split()[3]) <= 0.3


def test_json(run: Run) -> None:
    result = run("inspect", EMBEDDED, "--json", "--opset", "21", "--bits", "2/2")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["settings"]["bits"] == "2/2"
    assert told["settings"]["opset"] == 17  # the model's own, which needs no raising


def test_names_are_shown_harmlessly(run: Run, folder: Path) -> None:
    model = onnx.load(EMBEDDED)
    renamed = "[bold]x[/bold][/red]\x1b[2J\u202e\ny"
    next(node for node in model.graph.node if node.op_type == "Conv").name = renamed
    onnx.save(model, folder / "strange.onnx")
    result = run("inspect", "strange.onnx")
    assert result.exit_code == 0, result.output
    assert "[bold]x[/bold][/red]\\x1b[2J\\u202e\\ny" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    told = run("inspect", "strange.onnx", "--json").stdout
    assert "\x1b" not in told
    assert renamed in [layer["node"] for layer in json.loads(told)["layers"]]
    refused = run("inspect", "strange.onnx", "--exclude", "bold.nothing")
    assert refused.exit_code == 2
    assert "\x1b" not in refused.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.onnx"], "missing.onnx: no such file; expected an ONNX model"),
        (["."], ".: is a folder"),
        (["model.onnx"], "model.onnx: "),
        (["model.onnx", "--bits", "9/9"], "--bits 9/9: weight bits are 9"),
        (["model.onnx", "--exclude", "("], "--exclude '(': is not a regular expression"),
        ([str(EMBEDDED), "--exclude", "layer9"], "nodes' names; near names are"),
        ([str(EMBEDDED), "--bits", "auto", "--max-size", "0.2"], "no calibration images: --calib is not given"),
        (
            [str(EMBEDDED), "--bits", "auto", "--max-drop", "1"],
            "is known once files are calibrated and measured on images held",
        ),
        ([str(EMBEDDED), "--max-drop", "1"], "--max-drop 1: inspect measures no accuracy"),
        ([str(EMBEDDED), "--method", "nearest", "--set", "warmup=0.5"], "warmup is given, but it has no effect"),
        ([str(EMBEDDED), "--target", "tflite"], "--target 'tflite'"),
    ],
)
def test_what_is_refused(run: Run, args: list[str], message: str) -> None:
    result = run("inspect", *args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
