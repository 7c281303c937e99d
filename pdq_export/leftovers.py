"""Temporary files and folders beside what is written: how they are named, whose they are, and what killed runs left.

Whoever works on one holds a lock on it from its creation on, which the system takes back when the process ends, however
it ends. What bears such a name and is not locked is nobody's any more.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is told apart, so nothing is removed
    fcntl = None  # type: ignore[assignment]

_LONGEST_STEM = 40  # bytes of names that are made from others, so that no file system finds them too long
_DIGITS = 8  # of the whole name's digest, since names may share their beginning
_NAME = re.compile(r"\.(?P<stem>.+)\.(?P<digest>[0-9a-f]{8})-[0-9a-f]{8}\.tmp", re.DOTALL)
_ATTEMPTS = 100
_PAUSE = 0.01  # seconds


def temporary_name(target: Path) -> Path:
    """A new name beside ``target``, for what belongs to it and is not finished."""
    return target.with_name(f".{_stem(target)}.{_digest(target)}-{secrets.token_hex(4)}.tmp")


class Claim:
    """A temporary file or folder, ``path``, with a lock on it, as far as the system has such locks.

    The lock is taken on what was created, before anybody can find it unlocked and whole: who cleans up may win between
    the two, and then there is another under a new name.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path, self._descriptor = path, descriptor

    @classmethod
    def file(cls, target: Path) -> "Claim":
        """An empty file beside ``target``, with the permissions that the user's umask leaves. Raises OSError."""
        return cls._create(target, lambda path: os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))

    @classmethod
    def folder(cls, target: Path, mode: int = 0o777) -> "Claim":
        """An empty folder beside ``target``, for whom ``mode`` lets in. Raises OSError."""

        def create(path: Path) -> int | None:
            path.mkdir(mode)
            return _opened(path)

        return cls._create(target, create)

    @classmethod
    def link(cls, source: Path, target: Path) -> "Claim":
        """A second name of ``source`` beside ``target``. Raises OSError where there can be none."""

        def create(path: Path) -> int | None:
            descriptor = _opened(source)
            try:
                _lock(descriptor, shared=True)  # before it has the name that others clean up
                os.link(source, path)
            except BaseException:
                _close(descriptor)
                raise
            return descriptor

        return cls._create(target, create)

    @classmethod
    def _create(cls, target: Path, create: Callable[[Path], int | None]) -> "Claim":
        for _ in range(_ATTEMPTS):
            path = temporary_name(target)
            try:
                descriptor = create(path)
            except FileNotFoundError:
                if not target.parent.is_dir():
                    raise
                continue  # a folder that is gone between its creation and its opening
            except BlockingIOError:  # somebody cleans up another name of the same file
                time.sleep(_PAUSE)
                continue
            if fcntl is None:
                _close(descriptor)  # what is open cannot be renamed there
                return cls(path, None)
            if _is_ours(descriptor, path):
                return cls(path, descriptor)
            _close(descriptor)
        raise FileNotFoundError(f"{target}: what is written beside it is removed again and again")

    def write(self, content: bytes) -> None:
        """Fill the file and see to it that it is on the disk. Raises OSError."""
        with self.path.open("r+b") as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove a file that has not been moved, and give it up."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.release()

    def release(self) -> None:
        """Give it up."""
        _close(self._descriptor)
        self._descriptor = None


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of this user's among the system's temporary ones, which is removed afterwards. Raises OSError.

    Those of processes that were killed within are removed first.
    """
    target = Path(tempfile.gettempdir(), "pdq-export")
    remove_leftovers(target)
    claim = Claim.folder(target, 0o700)
    try:
        yield claim.path
    finally:
        shutil.rmtree(claim.path, ignore_errors=True)
        claim.release()


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs have left of ``target`` beside it; what a live one works on stays."""
    _remove(target.parent, lambda match: (match["stem"], match["digest"]) == (_stem(target), _digest(target)))


def remove_all_leftovers(folder: Path) -> None:
    """Remove what killed runs have left in ``folder``, whatever it belonged to; what a live one works on stays."""
    _remove(folder, lambda match: True)


def _remove(folder: Path, belongs: Callable[[re.Match[str]], bool]) -> None:
    if fcntl is None:
        return
    try:
        found = [path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and belongs(match)]
    except OSError:
        return
    for path in found:
        with contextlib.suppress(OSError):  # in use, or somebody else's by now
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                continue
            descriptor = _opened(path)
            if descriptor is None:
                continue
            try:
                _lock(descriptor, shared=False)
                if not os.path.samestat(os.fstat(descriptor), path.lstat()):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            finally:
                _close(descriptor)


def _stem(target: Path) -> str:
    return os.fsencode(target.name)[:_LONGEST_STEM].decode(errors="ignore") or "file"


def _digest(target: Path) -> str:
    return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:_DIGITS]


def _opened(path: Path) -> int | None:
    """A descriptor to lock; None where nothing can be opened: an unreadable file, a folder on Windows."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except PermissionError:
        return None


def _lock(descriptor: int | None, *, shared: bool) -> None:
    """Raises BlockingIOError where another has it, OSError where there are no locks."""
    if fcntl is not None and descriptor is not None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _is_ours(descriptor: int | None, path: Path) -> bool:
    """Whether the lock is held, or cannot be, and ``path`` is still what was created."""
    try:
        _lock(descriptor, shared=True)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks, where nobody can remove it either
    try:
        return descriptor is None or os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
