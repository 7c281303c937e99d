"""Settings of a whole process, which only its owner may change: the command line does, and so may a program.

Nothing else in the package changes what other threads see, but for `without_stdout_lines`, which loses nothing
of theirs.
"""

import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import NoReturn

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _NEVER = -1, -3, 2**31 - 1
_PARENT_DEATH_SIGNAL = 1  # of Linux's sys/prctl.h
_LARGEST_THRESHOLD = 32 * 2**20
_STDOUT = 1  # the descriptor
_STDOUT_TAKEN = threading.Lock()


def tune_process(*, limited: bool = False, threads: int | None = None, deterministic: bool = False) -> None:
    """Set what makes calibration fast, for the rest of the process: memory that is kept, and threads that do not spin.

    To be called before torch is imported; where that has happened, threads that spin go on spinning. ``limited``: for
    runs with ``max_memory``. Results are the same with it and without it. ``threads``: of an operator, where others
    share the machine; sums of several threads are in another order. ``deterministic``: have cuBLAS work as runs
    with ``deterministic`` need it, which what is set already has to allow.
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:  # it does not look there again
            sys.modules["torch"].set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _let_threads_sleep()
    _keep_heap(limited=limited)


def _let_threads_sleep() -> None:
    """Have OpenMP's threads give their core away while they wait for one another; what is set already wins.

    By default they spin. Where other programs hold the cores, that takes the core from the very thread that is waited
    for, at every operator: a step takes 20 to 40 times as long with two threads on two busy cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # of Intel's and LLVM's


def _keep_heap(*, limited: bool) -> None:
    """Have glibc keep the memory that is freed; other C libraries are left alone.

    By default it maps every large tensor anew, and a step on a network of 224 x 224 images spends three quarters of its
    time in page faults (benchmarks/PROFILE.md). Where memory is ``limited`` large tensors are mapped: a heap that holds
    tensors of all sizes has holes, and they add up to gigabytes.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        if limited:
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
            return
        # Before 2.35 the threshold has a limit.
        if libc.mallopt(_M_MMAP_THRESHOLD, _NEVER) or libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD):
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


@contextlib.contextmanager
def without_stdout_lines(begin: bytes) -> Iterator[None]:
    """Within it no line that a C library prints, and that begins so, reaches the process's standard output.

    What else is printed meanwhile, by whatever thread, follows at the end. One thread at a time is within.
    """
    with _STDOUT_TAKEN, contextlib.ExitStack() as until_end:
        try:
            _flush()
            before = os.dup(_STDOUT)
            until_end.callback(os.close, before)
            kept = until_end.enter_context(tempfile.TemporaryFile())
            os.dup2(kept.fileno(), _STDOUT)
        except OSError:  # there is no standard output, or no room beside it
            yield
            return
        try:
            yield
        finally:
            _flush()  # what C's stdio holds would come later
            os.dup2(before, _STDOUT)
            kept.seek(0)
            others = b"".join(line for line in kept if not line.startswith(begin))
            while others:
                others = others[os.write(_STDOUT, others) :]


def _flush() -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


def work_in(folder: str) -> None:
    """Go to the folder that relative paths, and ``module:function``, of whoever started this process are in."""
    os.chdir(folder)
    find_modules_here()


def ray_is_quiet() -> None:
    """Have Ray, before it is imported, send nothing to its makers and print nothing; what is set already wins."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its warning about a default of the future


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Which of ``size`` processes of one command this is, ``rank`` from 0, on its machine ``local_rank``."""

    rank: int
    size: int
    local_rank: int


def find_launch(environment: Mapping[str, str] | None = None) -> Launch | None:
    """What torchrun says of this process; None where it has not started it, or nothing beside it."""
    found = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" not in found:  # clusters set the others for programs that are alone, too
        return None
    rank, size, local_rank = (int(found.get(name, default)) for name, default in _OF_LAUNCH)
    return Launch(rank=rank, size=size, local_rank=local_rank) if size > 1 else None


_OF_LAUNCH = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


class ToldToEnd(BaseException):
    """SIGTERM came; no `Exception`, since nothing is to go on after it."""


def end_orderly(message: str) -> None:
    """Have SIGTERM raise `ToldToEnd`, with a message, where the process is: it leaves nothing unfinished behind.

    On Linux SIGTERM comes too when the process that has started this one is killed.
    """

    def end(*_: object) -> NoReturn:
        raise ToldToEnd(message)

    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def end_in_peace() -> None:
    """Have SIGTERM do nothing any more: the process ends anyhow, and has one thing to say before."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Within it SIGTERM ends the process wherever it is, in a library that waits too; for the main thread.

    A handler of Python's would wait for the library.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def find_modules_here() -> None:
    """Have ``module:function`` be looked for in the current folder too, behind everything else; see `modules_here`."""
    _Here.looked_in = True


@contextlib.contextmanager
def modules_here() -> Iterator[None]:
    """Within it Python finds modules in the current folder, after `find_modules_here`.

    No longer than a module of the user's is imported: what other packages try to import must not be found there.
    """
    folder = os.getcwd()
    if not _Here.looked_in or folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


class _Here:
    looked_in = False


def read_environment() -> Mapping[str, str]:
    """A copy of all environment variables."""
    return dict(os.environ)
