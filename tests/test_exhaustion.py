"""Memory that runs out is the user's matter: one error with a remedy, whichever library says it and wherever."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pdq_export import calib_data, convert, inspect_model, quantize
from pdq_export.errors import ModelError, OptionError, ResourceError
from pdq_export.exhaustion import is_exhaustion, tells_of_memory
from pdq_export.plan import patterns

CPU, GPU = (
    "^memory ran out.*--max-memory SIZE.*--samples N.*batch_size",
    "the GPU's memory ran out.*batch_size=N.*--device cpu",
)
TOLD: list[tuple[Exception, str]] = [
    (MemoryError(), CPU),
    (MemoryError("Unable to allocate 8.00 EiB for an array with shape (1,)"), CPU),
    (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), CPU),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of"), GPU),
    (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), GPU),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), GPU),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to "),
        CPU,
    ),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
        CPU,
    ),
    (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"), CPU),
    (RuntimeError("bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size"), CPU),
    (RuntimeError("bad allocation"), CPU),
]


@pytest.mark.parametrize(("error", "remedy"), TOLD, ids=str)
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_library_is_understood(error: Exception, remedy: str, wrapped: bool) -> None:
    @tells_of_memory(calibrates=True)
    def run() -> None:
        if not wrapped:
            raise error
        try:
            raise error
        except Exception as inner:
            raise ModelError("node 'c' (Conv): fails on an input of shape [2, 3, 8, 8]") from inner

    with pytest.raises(ResourceError, match=remedy) as caught:
        run()
    assert caught.value.__cause__ is caught.value.__context__ is None  # whose frames would keep the memory
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        OSError(errno.EPIPE, "Broken pipe"),
        ModelError("/home/me/out of memory.onnx: no such file"),
        KeyboardInterrupt(),
        ResourceError("memory ran out"),
    ],
    ids=repr,
)
def test_other_errors_stay_as_they_are(error: BaseException) -> None:
    @tells_of_memory(calibrates=True)
    def run() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run()
    assert caught.value is error
    assert not is_exhaustion(error)


def fails(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("place", "call"),
    [
        (
            "pdq_export.work.load_model",
            lambda path: quantize(path, calib=np.zeros((1, 1, 28, 28), np.float32)),
        ),
        ("pdq_export.commands.calibrating.calibrate", lambda path: quantize(path, calib=calib_data.path("calib.npz"))),
        ("pdq_export.work.prepare_and_plan", inspect_model),
        ("pdq_export.commands.convert.read_model", lambda path: convert(path, "native")),
        ("onnx.checker.check_model", inspect_model),  # behind an error of ours
    ],
)
def test_what_users_call_tells_it(place: str, call: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, fails)
    with pytest.raises(ResourceError, match="memory ran out; expected enough"):
        call(calib_data.path("fashion_resnet.onnx"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_process_that_may_have_no_more(tmp_path: Path) -> None:
    """On the command line: a line that says so, and exit code 2."""
    np.save(tmp_path / "images.npy", np.zeros((6000, 1, 28, 28), np.float32))
    code = f"""
import resource, sys
import onnxruntime, onnxsim, torch, pdq_export.commands.quantize
from pdq_export.cli import app
torch.set_num_threads(1)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 250 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
app(["quantize", {str(calib_data.path("fashion_resnet.onnx"))!r}, "--calib", "images.npy", "--samples", "6000",
     "--iters", "1", "--correction-iters", "0", "-o", "q.onnx", "--device", "cpu"])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("pdq-export: error: memory ran out (")
    assert "give --max-memory SIZE" in last
    assert not (tmp_path / "q.onnx").exists()


def test_rules_that_cannot_be_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_MATCH", "raise MemoryError('out of it')")
    with pytest.raises(
        OptionError, match=r"--exclude '\(a\+\)\+': cannot be matched \(MemoryError: out of it\).*simpler"
    ):
        patterns.find_matches("(a+)+", ["a", "b"], "--exclude")
    monkeypatch.setattr(patterns.sys, "executable", "/nowhere/python")
    with pytest.raises(OptionError, match=r"cannot be matched \(.*No such file"):
        patterns.find_matches("(a+)+", ["a", "b"], "--exclude")
