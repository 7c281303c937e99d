"""The lock of a run's folder: a file in it, which goes with the folder when that is cleared."""

import os
from pathlib import Path

import filelock

LOCK = "lock"


def acquire(folder: Path) -> filelock.BaseFileLock | None:
    """The lock of a folder; None where somebody has removed its file meanwhile, and another may be made.

    Raises filelock.Timeout where another has it, and OSError.
    """
    lock = filelock.FileLock(folder / LOCK)
    lock.acquire(timeout=0)
    if _is_there(lock, folder / LOCK):
        return lock
    lock.release()
    return None


def _is_there(lock: filelock.BaseFileLock, path: Path) -> bool:
    """Whether the file that is locked is the one that others find."""
    descriptor = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    try:
        found = path.lstat()
        return descriptor is None or os.path.samestat(os.fstat(descriptor), found)
    except OSError:
        return False
