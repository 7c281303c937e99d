"""Files for tensors that memory has no room for. They have no name, so they are gone with the process at the latest.

They lie in Python's temporary folder, which TMPDIR sets; a folder that is itself in memory (tmpfs) saves nothing.
"""

import shutil
import tempfile

import torch
from torch import Tensor

from pdq_export.calibrate.memory import format_size
from pdq_export.errors import CalibrationError


class SpillFile:
    """Bytes of tensors at positions.

    Read and written, not mapped: the pages of a mapped file would count as resident.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="pdq-export-", buffering=0)  # noqa: SIM115  (closed by close())
        except OSError as error:
            raise _no_room(f"no file can be made there ({error.strerror})") from error

    def write(self, start: int, x: Tensor) -> None:
        """Write a tensor from byte ``start`` on. Raises CalibrationError where the disk has no room."""
        data = _bytes_of(x.detach().cpu().contiguous())
        try:
            self._file.seek(start)
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise _no_room(f"writing failed ({error.strerror})") from error

    def read(self, start: int, x: Tensor) -> None:
        """Fill a contiguous tensor on the CPU from byte ``start`` on."""
        data = _bytes_of(x)
        self._file.seek(start)
        while data:
            count = self._file.readinto(data)
            if not count:
                raise CalibrationError("a temporary file is cut off; expected what was written to it; start again")
            data = data[count:]

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # not where __init__ failed
            self.close()


def check_room(nbytes: int) -> None:
    """Raise CalibrationError where the disk of the temporary folder has no room for ``nbytes``."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if nbytes > free:
        raise _no_room(f"{format_size(free)} are free and {format_size(nbytes)} are needed")


def _bytes_of(x: Tensor) -> memoryview:
    return x.reshape(-1).view(torch.uint8).numpy().data


def _no_room(found: str) -> CalibrationError:
    try:
        folder = tempfile.gettempdir()
    except OSError:
        folder = "temporary files"
    return CalibrationError(
        f"{folder}: no room for block inputs and outputs that are kept out of memory: {found}; set TMPDIR to a folder "
        "with room, give a larger --max-memory or lower --samples"
    )
