"""Torch as this package computes with it, whatever the calling process has set."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from pdq_export.errors import CalibrationError


class _Process:
    """What calls have settled for all threads: the first of those that run at once saves it, the last puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before = contextlib.ExitStack()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        with self._lock:
            self._calls += 1
        try:
            with self._lock:
                self._settle()
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    self._before.close()

    def _settle(self) -> None:
        self._before.enter_context(full_float32())
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            self._before.callback(torch.set_default_dtype, dtype)
        if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
            torch.use_deterministic_algorithms(True, warn_only=True)
            self._before.callback(torch.use_deterministic_algorithms, True)


_process = _Process()


@contextlib.contextmanager
def settled_torch() -> Iterator[None]:
    """Float32 in full, gradients, no autocast, new tensors in float32 on the CPU; afterwards all is as it was.

    Under ``torch.use_deterministic_algorithms`` what has no deterministic form warns where it would raise. What torch
    keeps for the whole process, that, the default dtype and the precision, is as it was after the last of the calls
    that run at once in several threads.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_process.settled())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":  # the mode costs time at every call
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Keep convolutions and products of matrices from rounding their inputs to TF32 (10 bits) or bfloat16 (7).

    cuDNN does by default on GPUs that can; the rest, on a CPU too, where the process has allowed it.
    """
    with contextlib.ExitStack() as stack:
        if hasattr(torch.backends, "fp32_precision"):
            _set_by_backend(stack)
        else:
            _set_by_flag(stack)
        yield


@contextlib.contextmanager
def exact_sums(device: torch.device) -> Iterator[None]:
    """Keep convolutions of integers on a GPU from cuDNN.

    It may compute them in Winograd's or Fourier's way, which rounds; what stands in for it multiplies and adds.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.enabled
    if device.type == "cpu" or not before:
        yield
        return
    try:
        cudnn.enabled = False
        yield
    finally:
        cudnn.enabled = before


@contextlib.contextmanager
def same_bits() -> Iterator[None]:
    """Have torch take kernels that give the same bits each time. Raises CalibrationError where an operator has none."""
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    kept, filled = (cudnn.deterministic, cudnn.benchmark), memory.fill_uninitialized_memory
    on, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # nothing reads it, and it costs a kernel each
        yield
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        raise CalibrationError(
            f"--deterministic: {str(error).partition('.')[0]}; expected operators that have one; calibrate without "
            "--deterministic, or with --device cpu"
        ) from error
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(on, warn_only=warns)
        cudnn.deterministic, cudnn.benchmark = kept


def _set_by_flag(stack: contextlib.ExitStack) -> None:
    """Torch before 2.9; the precision of products of matrices holds on CUDA and in oneDNN alike."""
    stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    torch.backends.cudnn.allow_tf32 = False
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")


def _set_by_backend(stack: contextlib.ExitStack) -> None:
    """Torch from 2.9 on, where operators inherit from their backend and backends from the whole.

    The older flags cannot be read once the two are mixed, and all kernels go by these. What still differs after its
    parent was set is its own and put back as such; what was inherited is inherited again.
    """
    backends: Any = torch.backends
    cudnn, onednn = backends.cudnn, backends.mkldnn
    for owner in (backends, cudnn, cudnn.conv, cudnn.rnn, backends.cuda.matmul, onednn.conv, onednn.matmul, onednn.rnn):
        if (before := owner.fp32_precision) != "ieee":
            owner.fp32_precision = "ieee"
            stack.callback(setattr, owner, "fp32_precision", before)
