"""Temporary files and folders beside what is written: how they are named, whose they are, and what killed runs left.

Whoever works on one holds a lock on it, which the system takes back when the process ends, however it ends. What bears
such a name and is not locked is nobody's any more.
"""

import os
import re
import secrets
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is told apart, so nothing is removed
    fcntl = None  # type: ignore[assignment]

LONGEST_STEM = 40  # of names that are made from others, so that no file system finds them too long
_NAME = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)


def temporary_name(target: Path) -> Path:
    """A new name beside ``target``, for what belongs to it and is not finished."""
    return target.with_name(f".{target.name[:LONGEST_STEM]}.{secrets.token_hex(4)}.tmp")


class Claim:
    """A lock on a temporary file or folder, as far as the system has such locks."""

    def __init__(self, path: Path) -> None:
        self._descriptor = _locked(path, shared=True)

    def release(self) -> None:
        """Give it up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs have left of ``target`` beside it; what a live one works on stays."""
    try:
        found = [path for path in target.parent.iterdir() if _belongs(path, target)]
    except OSError:
        return
    for path in found:
        descriptor = _locked(path, shared=False)
        if descriptor is None:
            continue
        try:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            pass  # somebody else's by now
        finally:
            os.close(descriptor)


def _belongs(path: Path, target: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    return match is not None and match["stem"] == target.name[:LONGEST_STEM] and not path.is_symlink()


def _locked(path: Path, *, shared: bool) -> int | None:
    """An open descriptor that holds the lock; None where another has it, or there are no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
