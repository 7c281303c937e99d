"""Where calibration computes: a torch device, by the name that a user gives it."""

import contextlib
from collections.abc import Iterator

import torch

from pdq_export.calibrate.precision import same_bits
from pdq_export.errors import OptionError
from pdq_export.process import read_environment

_CUBLAS, _FIXED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """``auto``, a GPU where there is one, ``cpu``, ``cuda`` or ``cuda:N``. Raises OptionError for any that is not.

    ``local_rank``: of a process that is not alone on its machine; the GPU is the one of that number.
    """
    if local_rank is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank}"
        if local_rank >= torch.cuda.device_count():
            raise OptionError(
                f"--device: process {local_rank} on this machine has no GPU of its own, torch sees "
                f"{torch.cuda.device_count()}; expected one for each; start as many processes as there are GPUs "
                "(torchrun --nproc-per-node gpu), or give --device cpu"
            )
    elif local_rank is not None and name.startswith("cuda:"):
        raise OptionError(
            f"--device {name!r}: each process has a GPU of its own; expected auto, cuda or cpu; choose GPUs by the "
            "environment variable CUDA_VISIBLE_DEVICES"
        )
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise OptionError(
            f"--device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu or install a "
            "CUDA build of torch"
        )
    return device


@contextlib.contextmanager
def computing_on(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """Have ``device`` be the one that CUDA allocates for, or pinned memory would open GPU 0 beside it.

    ``deterministic``: kernels that give the same bits each time, and an error where there are none; a CPU's do anyhow.
    What torch keeps for the whole process is as it was afterwards. Raises OptionError where cuBLAS is not set up for
    that, CalibrationError where an operator has no such kernel.
    """
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if deterministic and device.type != "cpu":
            _check_cublas(device)
            stack.enter_context(same_bits())
        yield


def _check_cublas(device: torch.device) -> None:
    if device.type == "cuda" and read_environment().get(_CUBLAS) not in _FIXED:
        raise OptionError(
            f"--deterministic: the environment variable {_CUBLAS} is {read_environment().get(_CUBLAS)!r}; expected "
            f"{_FIXED[0]} before CUDA is first used: set it, or call pdq_export.tune_process(deterministic=True)"
        )
