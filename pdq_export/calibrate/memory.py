"""How much memory there is for calibration, and how much a step takes."""

import contextlib
import ctypes
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pdq_export.errors import OptionError

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# Where the process cannot be asked: Python, PyTorch and a mid-sized network.
_ASSUMED_RESIDENT = 2**30
# Beside the tensors that a step keeps for its backward pass: gradients, and what operators allocate for themselves.
_STEP_FACTOR = 1.25
# Images that `step_bytes` is asked with: no axis of length one, which operators may treat in a special way.
STEP_IMAGES = 3


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``4GB`` (10^9), ``1.5GiB`` (2^30), ``512MB`` or a plain number of bytes.

    Raises OptionError for anything else and for sizes below one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(text), re.ASCII | re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise OptionError(f"--max-memory {text!r}: expected a size, for example 4GB, 512MB or 1.5GiB")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2].lower()])
    if size < 1:
        raise OptionError(f"--max-memory {text!r}: expected a size above zero, for example 4GB")
    return size


def enough(nbytes: int) -> str:
    """A size for messages, no smaller than what is meant, with a twentieth to spare; it can be given as it is."""
    unit, name = (100_000_000, "GB") if nbytes >= 1e9 else (1_000_000, "MB")
    tenths = math.ceil(nbytes * 1.05 / unit)
    return f"{tenths / 10:.1f}{name}" if name == "GB" else f"{tenths}{name}"


def format_size(nbytes: int) -> str:
    """As GB, MB or kB, for messages."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.1f} GB"
    return f"{nbytes / 1e6:.0f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


def resident_bytes() -> int:
    """Memory that the process occupies now; a guess where the system does not say."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (ImportError, OSError):
        return _ASSUMED_RESIDENT


def trim_heap() -> None:
    """Return free pieces of the heap to the system: glibc keeps them, and steps leave gigabytes of them."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


# What convolutions copy, the heap's holes and threads take beside tensors: up to 300 MB were measured.
SCRATCH = 320_000_000


def process_budget(max_memory: int) -> int:
    """What is left of ``max_memory`` bytes; below zero where the process occupies more already."""
    trim_heap()
    return max_memory - resident_bytes()


def device_budget(device: torch.device) -> int:
    """Bytes of GPU memory for caches and steps: nine tenths of what is free, since the allocator wastes some.

    What torch holds without using it is free as well.
    """
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + unused) * 0.9)


def step_bytes(
    student: nn.Module,
    rest: nn.Module | None,
    inputs: Sequence[Tensor],
    bypass: Sequence[Tensor],
    batch_size: int,
) -> int:
    """About what a step on ``batch_size`` images takes, from what its backward pass keeps of two and three images.

    ``inputs`` of the student and ``bypass`` of the ``rest`` of the network hold `STEP_IMAGES` images. Two forward
    passes cancel what does not depend on the number of images (weights). The generator of the student's masks moves on.
    """
    two, three = (
        _saved_bytes(student, rest, [x[:n] for x in inputs], [x[:n] for x in bypass])
        for n in (STEP_IMAGES - 1, STEP_IMAGES)
    )
    return int(max(three - two, 0) * batch_size * _STEP_FACTOR)


def _saved_bytes(student: nn.Module, rest: nn.Module | None, inputs: Sequence[Tensor], bypass: Sequence[Tensor]) -> int:
    kept: dict[int, Tensor] = {}

    def note(x: Tensor) -> None:
        # Detached: the tensor itself would close a cycle with its graph, and its memory would never come back.
        kept[x.untyped_storage().data_ptr()] = x.detach()

    # A step sends mixed and quantized inputs through the student together, and the latter on through the rest.
    doubled = [x if rest is None else torch.cat([x, x]) for x in inputs]
    doubled = [x.detach().requires_grad_(True) if x.is_floating_point() else x for x in doubled]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, _unused):
        outputs = student(*doubled)
        if rest is not None:
            rest(*(output[len(inputs[0]) :] for output in outputs), *bypass)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def _unused(_: object) -> Tensor:
    raise AssertionError("there is no backward pass")
