"""Torch as this package computes with it, whatever the calling process has set."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pdq_export.errors import CalibrationError
from pdq_export.frontend.ops.interpolate import forget_tables


class _Process:
    """Something that torch keeps for all threads: the first of those that hold it at once sets it, the last puts it
    back. What others find in the meantime is nobody's to save.
    """

    def __init__(self, settle: Callable[[contextlib.ExitStack], None]) -> None:
        self._settle = settle  # takes what undoes it
        self._lock = threading.Lock()
        self._holders: list[int] = []  # threads, one as often as it holds it
        self._owner: int | None = None  # the thread that has claimed it
        self._before = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises CalibrationError where another thread has claimed it."""
        with self._lock:
            if self._owner not in (None, threading.get_ident()):
                raise CalibrationError(
                    "another thread of this process calibrates with prediction_precision tf32, which torch keeps for "
                    "all threads, so that this one would be rounded as well; expected one at a time: wait for it, or "
                    "take a process of its own"
                )
            if not self._holders:
                with contextlib.ExitStack() as undo:  # should only a part of it succeed
                    self._settle(undo)
                    self._before = undo.pop_all()
            self._holders.append(threading.get_ident())
        try:
            yield
        finally:
            with self._lock:
                self._holders.remove(threading.get_ident())
                if not self._holders:
                    self._before.close()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Let no other thread hold it while this lasts. Raises CalibrationError where one does now."""
        own = threading.get_ident()
        with self._lock:
            if self._owner not in (None, own) or any(holder != own for holder in self._holders):
                raise CalibrationError(
                    "prediction_precision tf32: another thread of this process works with torch, which has one "
                    "precision for both; expected one at a time; take bfloat16 or float32, or processes of their own"
                )
            before, self._owner = self._owner, own
        try:
            yield
        finally:
            with self._lock:
                self._owner = before


def _settle(undo: contextlib.ExitStack) -> None:
    undo.callback(forget_tables)  # of sizes that were resized to, on whichever device
    undo.enter_context(full_float32())
    if (dtype := torch.get_default_dtype()) != torch.float32:
        torch.set_default_dtype(torch.float32)
        undo.callback(torch.set_default_dtype, dtype)
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        torch.use_deterministic_algorithms(True, warn_only=True)
        undo.callback(torch.use_deterministic_algorithms, True)


def _enforce(undo: contextlib.ExitStack) -> None:
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    # Nothing reads memory that is not filled, and filling costs a kernel each.
    for owner, name, value in (
        (cudnn, "deterministic", True),
        (cudnn, "benchmark", False),
        (memory, "fill_uninitialized_memory", False),
    ):
        _set(undo, owner, name, value)
    on, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    undo.callback(torch.use_deterministic_algorithms, on, warn_only=warns)
    torch.use_deterministic_algorithms(True)


def _leave_cudnn(undo: contextlib.ExitStack) -> None:
    _set(undo, torch.backends.cudnn, "enabled", False)


def _set(undo: contextlib.ExitStack, owner: Any, name: str, value: object) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


_settled, _strict, _without_cudnn = _Process(_settle), _Process(_enforce), _Process(_leave_cudnn)


@contextlib.contextmanager
def settled_torch() -> Iterator[None]:
    """Float32 in full, gradients, no autocast, new tensors in float32 on the CPU; afterwards all is as it was.

    Under ``torch.use_deterministic_algorithms`` what has no deterministic form warns where it would raise. What torch
    keeps for the whole process, that, the default dtype and the precision, is as it was after the last of the calls
    that run at once in several threads; what `interpolate_axis` keeps between calls is given up then. Raises
    CalibrationError where another thread is in `alone_with_torch`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_settled.held())
        stack.enter_context(_refusals_told())
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
def alone_with_torch() -> Iterator[None]:
    """Let no other thread of the process begin what `settled_torch` settles, as `tf32_products` needs it.

    Raises CalibrationError where another thread is at it now; one that begins meanwhile raises it.
    """
    with _settled.claimed():
        yield


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """Let convolutions and products of matrices on a GPU round their inputs to TF32.

    That holds for the whole process, so raises CalibrationError as `alone_with_torch` does.
    """
    with alone_with_torch(), contextlib.ExitStack() as stack:
        if hasattr(torch.backends, "fp32_precision"):
            backends: Any = torch.backends
            cudnn = backends.cudnn
            _set_all(stack, (backends, cudnn, cudnn.conv, cudnn.rnn, backends.cuda.matmul), "tf32")
        else:
            _tf32_by_flag(stack)
        yield


@contextlib.contextmanager
def exact_sums(device: torch.device) -> Iterator[None]:
    """Keep convolutions of integers on a GPU from cuDNN.

    It may compute them in Winograd's or Fourier's way, which rounds; what stands in for it multiplies and adds.
    """
    with contextlib.nullcontext() if device.type == "cpu" else _without_cudnn.held():
        yield


@contextlib.contextmanager
def same_bits() -> Iterator[None]:
    """Have torch take kernels that give the same bits each time. Raises CalibrationError where an operator has none.

    What runs at once in other threads takes them as well, until the last of those that asked for it ends.
    """
    # Settled first, so that no other call settles in between, which would have operators warn where they must raise.
    with _settled.held(), _strict.held(), _refusals_told():
        yield


@contextlib.contextmanager
def _refusals_told() -> Iterator[None]:
    """Raise CalibrationError where an operator has no such kernel; a call that did not ask for one can meet that too,
    beside another that did.
    """
    try:
        yield
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        raise CalibrationError(
            f"--deterministic: {str(error).partition('.')[0]}; expected operators that have one; calibrate without "
            "--deterministic, or with --device cpu"
        ) from error


def _tf32_by_flag(stack: contextlib.ExitStack) -> None:
    for owner in (torch.backends.cudnn, torch.backends.cuda.matmul):
        _set(stack, owner, "allow_tf32", True)


def _set_by_flag(stack: contextlib.ExitStack) -> None:
    """Torch before 2.9; the precision of products of matrices holds on CUDA and in oneDNN alike."""
    stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    torch.backends.cudnn.allow_tf32 = False
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")


def _set_by_backend(stack: contextlib.ExitStack) -> None:
    """Torch from 2.9 on; the older flags cannot be read once the two are mixed, and all kernels go by these."""
    backends: Any = torch.backends
    cudnn, onednn = backends.cudnn, backends.mkldnn
    owners = (backends, cudnn, cudnn.conv, cudnn.rnn, backends.cuda.matmul, onednn.conv, onednn.matmul, onednn.rnn)
    _set_all(stack, owners, "ieee")


def _set_all(stack: contextlib.ExitStack, owners: Sequence[Any], value: str) -> None:
    """Operators inherit from their backend and backends from the whole: ``owners`` in that order.

    What still differs after its parent was set is its own and put back as such; what was inherited is inherited again.
    """
    for owner in owners:
        if (before := owner.fp32_precision) != value:
            owner.fp32_precision = value
            stack.callback(setattr, owner, "fp32_precision", before)
