"""Writes files whole or not at all, and never over something of the user's that they did not name."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
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
    write_together({path: content})


def write_together(contents: Mapping[str | Path, bytes]) -> None:
    """Write several files like `write_atomically`, all or none: they take their places when all are on the disk.

    Their order is the order in which they appear; what depends on others comes last. Raises OptionError.
    """
    temporaries: dict[Path, Path] = {}
    path = Path()
    try:
        try:
            for path, content in ((Path(name), content) for name, content in contents.items()):
                target = path.resolve()
                temporaries[target] = _create_temporary(target)
                _fill(temporaries[target], content)
                if target.exists():
                    shutil.copymode(target, temporaries[target])
            _replace(temporaries)
        except BaseException:  # Ctrl-C too
            for temporary in temporaries.values():
                with contextlib.suppress(OSError):
                    temporary.unlink()
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def _fill(temporary: Path, content: bytes) -> None:
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(temporaries: Mapping[Path, Path]) -> None:
    """Put every file in its place; where one cannot be, those before it become what they were."""
    undo: list[tuple[Path, Path | None]] = []
    try:
        for target, temporary in temporaries.items():
            if len(temporaries) > 1:
                undo.append((target, _set_aside(target)))
            temporary.replace(target)
    except BaseException:
        for target, aside in reversed(undo):
            with contextlib.suppress(OSError):
                if aside is None:
                    target.unlink()
                else:
                    aside.replace(target)
                    aside.unlink()  # two names of one file: then replacing does nothing
        raise
    for _, aside in undo:
        if aside is not None:
            with contextlib.suppress(OSError):
                aside.unlink()


def _set_aside(target: Path) -> Path | None:
    """A second name for what is at ``target``, or a copy where there are no links; None where nothing is."""
    if not target.exists():
        return None
    aside = _temporary_name(target)
    try:
        os.link(target, aside)
    except OSError:
        shutil.copy2(target, aside)
    return aside


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
    temporary = _temporary_name(target)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")


def _cannot_write(path: Path, error: OSError) -> OptionError:
    return OptionError(f"{path}: cannot be written: {error.strerror or error}; choose another place")
