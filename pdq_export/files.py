"""Writes files whole or not at all, and never over something of the user's that they did not name."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from pdq_export.errors import OptionError


def check_writable(path: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Make sure that ``write_atomically`` will be able to write ``path``, before hours are spent on its content.

    Raises OptionError where its folder is missing or cannot be written, where it is a folder or a device, where it is
    one of the ``inputs`` (by whatever name), or where it exists and ``overwrite`` is not set.
    """
    path = Path(path)
    try:
        _check_target(path, overwrite, inputs)
        temporary = _create_temporary(path.resolve())
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary.unlink()


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` through a temporary file beside it; a failure leaves what was there before.

    A symbolic link is followed. Raises OptionError where the file cannot be written.
    """
    path = Path(path)
    try:
        target = path.resolve()
        temporary = _create_temporary(target)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        except BaseException:  # Ctrl-C too
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def _check_target(path: Path, overwrite: bool, inputs: Iterable[str | Path]) -> None:
    if path.is_dir():
        raise OptionError(f"{path}: is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise OptionError(f"{path}: cannot be written: there is no folder {str(path.parent)!r}; create it first")
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # a name that the file system does not take fails here
    if not path.exists():
        return
    for source in inputs:
        if os.path.exists(source) and os.path.samefile(path, source):
            raise OptionError(f"{path}: is the same file as the input {str(source)!r}; choose another name to write to")
    if not path.is_file():
        raise OptionError(f"{path}: is not a regular file; expected the name of a file to write")
    if not overwrite:
        raise OptionError(f"{path}: exists already; choose another name, or replace it with --overwrite")


def _create_temporary(target: Path) -> Path:
    """An empty file beside ``target``, created with the permissions that the user's umask leaves."""
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _cannot_write(path: Path, error: OSError) -> OptionError:
    return OptionError(f"{path}: cannot be written: {error.strerror or error}; choose another place")
