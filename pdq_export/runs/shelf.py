"""All runs below a folder: what there is, and clearing it. Nothing that is not ours is ever removed."""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Sequence
from pathlib import Path

import filelock

from pdq_export.errors import OptionError
from pdq_export.leftovers import remove_leftovers
from pdq_export.runs.folder import LOCK, block_files
from pdq_export.runs.header import HEADER, Run, read_header

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
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
    found = [_describe(folder) for folder in folders if (folder / HEADER).is_file()]
    return sorted(found, key=lambda kept: (kept.changed, kept.path.name), reverse=True)


def clear_runs(root: Path, names: Sequence[str] = (), *, older_than: datetime.timedelta | None = None) -> Cleared:
    """Remove runs, all or those whose folder's name is given, or ends in ``-NAME``, and that are so old.

    Those that a live run is at work in stay, and so does whatever else lies in a folder. Raises OptionError for a name
    that is none of them.
    """
    runs = find_runs(root)
    for name in names:
        if not any(_is_called(kept, name) for kept in runs):
            raise OptionError(f"{name!r}: is no run in {root}; expected a name that pdq-export cache lists")
    limit = None if older_than is None else datetime.datetime.now(datetime.UTC) - older_than
    removed, size, in_use = [], 0, []
    for kept in runs:
        if names and not any(_is_called(kept, name) for name in names):
            continue
        if limit is not None and kept.changed > limit:
            continue
        if _remove(kept.path):
            removed.append(kept.path)
            size += kept.size
        else:
            in_use.append(kept.path)
    return Cleared(removed=tuple(removed), size=size, in_use=tuple(in_use))


def _is_called(kept: Kept, name: str) -> bool:
    return kept.path.name == name or kept.path.name.endswith(f"-{name}")


def _describe(folder: Path) -> Kept:
    try:
        run = read_header(folder)
    except (ValueError, OSError):
        run = None
    files = [path.stat() for path in _ours(folder)]
    changed = max((status.st_mtime for status in files), default=0.0)
    return Kept(
        path=folder,
        run=run,
        done=sum(1 for _ in block_files(folder)),
        size=sum(status.st_size for status in files),
        changed=datetime.datetime.fromtimestamp(changed, datetime.UTC),
    )


def _ours(folder: Path) -> list[Path]:
    header = folder / HEADER
    return [*(path for _, path in block_files(folder)), *([header] if header.is_file() else [])]


def _remove(folder: Path) -> bool:
    """Remove a run's own files, and its folder where nothing else is in it; whether nobody was at work there."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise OptionError(f"{folder}: cannot be removed: {error.strerror or error}") from error
    try:
        for path in _ours(folder):
            remove_leftovers(path)
            path.unlink()
        (folder / LOCK).unlink(missing_ok=True)
    except OSError as error:
        raise OptionError(f"{folder}: cannot be removed: {error.strerror or error}") from error
    finally:
        lock.release()
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
    if folder.exists():
        logger.warning("%s: holds files that are not of a run, which stay", folder)
    return True
