"""All runs below a folder: what there is, and clearing it. Nothing that is not ours is ever removed."""

import contextlib
import dataclasses
import datetime
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import filelock

from pdq_export.errors import OptionError, first_few
from pdq_export.leftovers import remove_all_leftovers
from pdq_export.runs.folder import block_files
from pdq_export.runs.header import FOLDER_NAME, HEADER, Run, is_regular, read_header
from pdq_export.runs.lock import LOCK, acquire

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """A run's folder; ``run``: None where its header is damaged; ``done``: finished blocks; ``size`` in bytes."""

    path: Path
    run: Run | None
    done: int
    size: int
    changed: datetime.datetime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cleared:
    """What `clear_runs` did: folders that are gone, with the bytes that they took, and those that are in use."""

    removed: tuple[Path, ...]
    size: int
    in_use: tuple[Path, ...]


def find_runs(root: Path) -> list[Kept]:
    """The runs below ``root``, the one that was changed last first; none where there is no such folder."""
    found = [kept for folder in _folders(root) if is_regular(folder / HEADER) if (kept := _describe(folder))]
    return sorted(found, key=lambda kept: (kept.changed, kept.path.name), reverse=True)


def clear_runs(root: Path, names: Sequence[str] = (), *, older_than: datetime.timedelta | None = None) -> Cleared:
    """Remove runs, all or those whose folder's name is given, or ends in ``-NAME``, and that are so old.

    Those that a live run is at work in stay, and so does whatever else lies in a folder. Without names what killed runs
    have left of others goes, too. Raises OptionError for a name that is none of them, and, when all others are removed,
    for those that cannot be.
    """
    runs = find_runs(root)
    for name in names:
        if not any(_is_called(kept, name) for kept in runs):
            raise OptionError(f"{name!r}: is no run in {root}; expected a name that pdq-export cache lists")
    limit = None if older_than is None else datetime.datetime.now(datetime.UTC) - older_than
    removed, size, in_use, failed = [], 0, [], []
    for kept in runs:
        if names and not any(_is_called(kept, name) for name in names):
            continue
        if limit is not None and kept.changed > limit:
            continue
        try:
            if _remove(kept.path):
                removed.append(kept.path)
                size += kept.size
            else:
                in_use.append(kept.path)
        except OSError as error:
            failed.append(f"{kept.path}: cannot be removed: {error.strerror or error}")
    if not names:
        _sweep(root, limit)
    if failed:
        raise OptionError(f"{first_few(failed)}; {len(removed)} other runs are removed; remove these by hand")
    return Cleared(removed=tuple(removed), size=size, in_use=tuple(in_use))


def _folders(root: Path) -> list[Path]:
    """All folders, in order; none where that one cannot be read."""
    try:
        return sorted(path for path in root.iterdir() if _is_folder(path))
    except OSError:
        return []


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _sweep(root: Path, limit: datetime.datetime | None) -> None:
    """Remove folders with the name of a run's that no header tells: what was interrupted while it was cleared."""
    for folder in _folders(root):
        if FOLDER_NAME.fullmatch(folder.name) is None or os.path.lexists(folder / HEADER):
            continue
        with contextlib.suppress(OSError):
            if limit is None or folder.stat().st_mtime <= limit.timestamp():
                _remove(folder)


def _is_called(kept: Kept, name: str) -> bool:
    return kept.path.name == name or kept.path.name.endswith(f"-{name}")


def _describe(folder: Path) -> Kept | None:
    """None where it cannot be read, or is gone meanwhile."""
    try:
        run = read_header(folder)
    except (ValueError, OSError):
        run = None
    try:
        blocks = [path for _, path in block_files(folder)]
    except OSError:
        return None
    files = []
    for path in [*blocks, folder / HEADER]:
        with contextlib.suppress(OSError):
            files.append(path.lstat())
    changed = max((status.st_mtime for status in files), default=0.0)
    return Kept(
        path=folder,
        run=run,
        done=len(blocks),
        size=sum(status.st_size for status in files),
        changed=datetime.datetime.fromtimestamp(changed, datetime.UTC),
    )


def _remove(folder: Path) -> bool:
    """Remove a run's own files, and its folder where nothing else is in it; whether nobody was at work there.

    Raises OSError; then its header is still there, unless it was the last, and it is listed.
    """
    try:
        lock = acquire(folder)
    except filelock.Timeout:
        return False
    if lock is None:
        return True  # another has cleared it
    try:
        remove_all_leftovers(folder)
        for _, path in block_files(folder):
            path.unlink(missing_ok=True)
        if is_regular(folder / HEADER):
            (folder / HEADER).unlink()
        if os.name != "nt":  # while it is held: afterwards it may be another's
            (folder / LOCK).unlink(missing_ok=True)
    finally:
        lock.release()
    with contextlib.suppress(OSError):
        if os.name == "nt":  # where a file that another has opened stays
            (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
    if folder.exists() and not os.path.lexists(folder / LOCK):
        logger.warning("%s: holds files that are not of a run, which stay", folder)
    return True
