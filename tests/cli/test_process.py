"""The command as users run it: a process of its own."""

import importlib.metadata
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pdq_export
from pdq_export.cli import app

from ..commands.test_convert import content, export

# A pipeline that only waits, so that there is something to interrupt.
WAITING = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
module = types.ModuleType("pdq_export.commands.quantize")
def quantize(model, **options):
    print("working", file=sys.__stdout__, flush=True)  # stdout itself is for results alone
    time.sleep(60)
module.quantize = quantize
sys.modules["pdq_export.commands.quantize"] = module
from pdq_export.cli import main
main()
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pdq_export", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_version(tmp_path: Path) -> None:
    result = run(tmp_path, "--version")
    assert (result.returncode, result.stdout) == (0, f"pdq-export, version {pdq_export.__version__}\n")


@pytest.mark.parametrize("args", [["--help"], ["quantize", "--help"], ["example", "-h"], []])
def test_help(tmp_path: Path, args: list[str]) -> None:
    result = run(tmp_path, *args)
    assert result.returncode == (0 if args else 2)
    text = result.stdout + result.stderr
    assert "Usage: pdq-export" in text
    assert "..." not in text.replace("[ARGS]...", "")  # summaries are not cut off


IMPORTED = """
import sys
from pdq_export.cli import app
try:
    app(sys.argv[1:])
finally:
    print(*({name.partition(".")[0] for name in sys.modules} & set(HEAVY)), file=sys.stderr)
"""


def imported(folder: Path, heavy: set[str], *args: str | Path) -> set[str]:
    """Which of the heavy libraries a command has imported by its end, in a process of its own."""
    code = IMPORTED.replace("HEAVY", repr(sorted(heavy)))
    command = [sys.executable, "-c", code, *map(str, args)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (0, 2), result.stderr
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["--help"],
        *([name, "--help"] for name in sorted(app.commands)),
        ["example"],
        ["quantize", "missing.onnx"],
    ],
    ids=" ".join,
)
def test_what_needs_nothing_heavy_imports_nothing_heavy(tmp_path: Path, args: list[str]) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "onnxsim", "numpy", "PIL"}
    assert imported(tmp_path, heavy, *args) == set()


def test_what_is_wrong_with_paths_is_told_without_torch(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    command = ("quantize", "model.onnx", "--calib")
    for args in (["missing.npz"], [".", "--eval", "model.onnx"], [".", "-o", "no/a.onnx"], [".", "--bits", "9/9"]):
        assert imported(tmp_path, {"torch"}, *command, *args) == set()


def test_bench_imports_neither_torch_nor_onnxsim(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content(export("chain", "8/8", "ort")))
    command = ("bench", "net.onnx", "net.onnx", "--seconds", "0", "--loads", "0")
    assert imported(tmp_path, {"torch", "onnxsim"}, *command) == set()


@pytest.mark.parametrize("target", ["native", "qcdq", "ort"])
def test_convert_imports_neither_torch_nor_onnxsim(tmp_path: Path, target: str) -> None:
    (tmp_path / "net.onnx").write_bytes(content(export("chain", "2/2", "ort")))
    assert imported(tmp_path, {"torch", "onnxsim"}, "convert", "net.onnx", "--target", target) == set()
    assert (tmp_path / f"net-{target}.onnx").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quantize", "missing.onnx"], "missing.onnx: no such file; expected an ONNX model"),
        (["quantize", "text.onnx"], "no calibration images"),
        (["quantize", "text.onnx", "--calib", "missing.npz"], "missing.npz: no such file or folder"),
        (["quantize", "text.onnx", "--calib", "."], "text.onnx: "),
        (["quantize", "text.onnx", "--calib", ".", "--device", "tpu"], "--device 'tpu': expected"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, args: list[str], message: str) -> None:
    (tmp_path / "text.onnx").write_text("this is not a model")
    result = run(tmp_path, *args, *(["--quiet"] if "--calib" in args else []))
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith(f"pdq-export: error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["text.onnx"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c(tmp_path: Path) -> None:
    for name in ("model.onnx", "images.npy"):
        (tmp_path / name).touch()
    command = [sys.executable, "-c", WAITING, "quantize", "model.onnx", "--calib", "images.npy"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.split()[-2:] == ["pdq-export:", "interrupted"]
    assert "Traceback" not in stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "images.npy"}


def test_the_entry_point_is_the_command_line() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="pdq-export")
    assert entry.value == "pdq_export.cli:main"
    assert callable(entry.load())


def test_no_module_named_cli_is_installed(tmp_path: Path) -> None:
    code = "import importlib.util as u, sys; sys.exit(bool(u.find_spec('cli') or u.find_spec('calib_data')))"
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=False)
    assert result.returncode == 0
