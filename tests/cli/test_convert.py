"""`pdq-export convert`: paths, messages and exit codes, on a small file that was really written."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result

from pdq_export.validate import min_onnxruntime

from ..commands.test_convert import content, export
from ..installed import onnxruntime_is

Run = Callable[..., Result]


# Older ones run the pairs of 2 bits as they are and need no option.
NEEDS_OPTION = onnxruntime_is("1.28")


@pytest.fixture
def quantized(folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(content(export("chain", "2/2", "ort")))
    return path


def failure(result: Result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_there_and_back(run: Run, quantized: Path, folder: Path) -> None:
    result = run("convert", "net.onnx", "--target", "native")
    assert result.exit_code == 0, result.output
    assert "wrote net-native.onnx, " in result.stdout
    assert ("session option session.disable_quant_qdq=1" in result.stdout) is NEEDS_OPTION
    assert run("convert", "net-native.onnx", "--target", "ort", "-o", "back.onnx").exit_code == 0
    assert (folder / "back.onnx").read_bytes() == quantized.read_bytes()


def test_json_tells_what_was_written(run: Run, quantized: Path, folder: Path) -> None:
    result = run("convert", "net.onnx", "--target", "qcdq", "--external-data", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    written = [folder / "net-qcdq.onnx", folder / "net-qcdq.onnx.data"]
    content = [path.read_bytes() for path in written]
    assert json.loads(result.stdout) == {
        "schema_version": 1,
        "target": "qcdq",
        "opset": onnx.load(written[0], load_external_data=False).opset_import[0].version,
        "model": {
            "name": "net-qcdq.onnx",
            "sha256": hashlib.sha256(b"".join(content)).hexdigest(),
            "size": sum(map(len, content)),
        },
        "files": [{"path": path.name, "size": len(data)} for path, data in zip(written, content, strict=True)],
        "min_onnxruntime": min_onnxruntime(onnx.load(written[0]).SerializeToString()) or None,
        "session_config": {},
    }


def test_json_tells_what_loading_needs(run: Run, quantized: Path) -> None:
    told = json.loads(run("convert", "net.onnx", "--target", "native", "--json").stdout)
    assert told["session_config"] == ({"session.disable_quant_qdq": "1"} if NEEDS_OPTION else {})
    assert told["min_onnxruntime"]


def test_quiet_and_opset(run: Run, quantized: Path, folder: Path) -> None:
    result = run("convert", "net.onnx", "--target", "ort", "--opset", "13", "-o", "old.onnx", "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert onnx.load(folder / "old.onnx").opset_import[0].version == 13


def test_verbose_shows_where_a_bug_is(run: Run, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pdq_export.commands.convert.convert", fail)
    assert "contradict" in failure(run("convert", "net.onnx", "--target", "native", "-q", "-v"))
    short = run("convert", "net.onnx", "--target", "native")
    assert (short.exit_code, "re-run with --verbose" in short.stderr) == (3, True)
    assert "Traceback" not in short.stderr
    assert "Traceback" in run("convert", "net.onnx", "--target", "native", "--verbose").stderr


def test_external_data(run: Run, quantized: Path, folder: Path) -> None:
    result = run("convert", "net.onnx", "--target", "qcdq", "-o", "out.onnx", "--external-data")
    assert result.exit_code == 0, result.output
    assert "wrote out.onnx.data, " in result.stdout
    assert run("convert", "out.onnx", "--target", "ort", "-o", "back.onnx").exit_code == 0
    assert (folder / "back.onnx").read_bytes() == quantized.read_bytes()
    assert "same file" in failure(run("convert", "out.onnx", "--target", "ort", "-o", "out.onnx.data", "--overwrite"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("missing.onnx", "--target", "ort"), "missing.onnx: no such file"),
        ((".", "--target", "ort"), ".: is a folder"),
        (("model.onnx", "--target", "ort"), "model.onnx: is"),
        (("net.onnx",), "Missing option '--target'"),
        (
            ("net.onnx", "--target", "tpu"),
            "--target 'tpu': unknown; expected one of native, ort, qcdq, qonnx, tensorrt",
        ),
        (("net.onnx", "--target", "ort", "-o", "sub/"), "sub/: is a folder; expected the name of a file"),
        (("net.onnx", "--target", "tensorrt"), "--target tensorrt: a finished file cannot be converted"),
        (("net.onnx", "--target", "native", "-o", "net.onnx", "--overwrite"), "is the same file as the input"),
        (("net.onnx", "--target", "native", "-o", "images.npy"), "exists already"),
        (("net.onnx", "--target", "native", "--opset", "5"), "--opset 5: expected at least 13"),
    ],
)
def test_errors(run: Run, quantized: Path, folder: Path, args: tuple[str, ...], message: str) -> None:
    before = sorted(folder.iterdir())
    assert message in failure(run("convert", *args))
    assert sorted(folder.iterdir()) == before
