"""Where calibration computes: a torch device, by the name that a user gives it."""

import torch

from pdq_export.errors import OptionError


def choose_device(name: str) -> torch.device:
    """``auto``, a GPU where there is one, ``cpu``, ``cuda`` or ``cuda:N``. Raises OptionError for any that is not."""
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
