"""The folder of a run: one file for every finished block, written whole or not at all, and one run at a time."""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

import filelock
import platformdirs
from annotated_types import Interval, Len

from pdq_export.errors import CheckpointError, OptionError
from pdq_export.files import check_writable, write_atomically
from pdq_export.leftovers import remove_all_leftovers
from pdq_export.runs.header import HEADER, Run, is_regular, of_other_version, read_bounded, read_header, write_header
from pdq_export.runs.lock import acquire
from pdq_export.spec.plain import from_text, to_text

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "PDQ_EXPORT_CACHE"
BLOCK_NAME = re.compile(r"block-(\d{4,8})\.jsonl")
_LONGEST_HEADER = 1 << 26  # characters; names of blocks are those of nodes, which may be of any length
_LONGEST_FILE = 1 << 32  # bytes
_ATTEMPTS = 10


class InUseError(CheckpointError):
    """Another run of the same key is at work in the folder."""


def default_root() -> Path:
    """The folder of all runs: that of the environment variable PDQ_EXPORT_CACHE, else one in the user's cache folder.

    Raises OptionError where the user has none, for want of a home directory.
    """
    if chosen := os.getenv(CACHE_VARIABLE):
        return Path(chosen)
    try:
        found = platformdirs.user_cache_path("pdq-export", appauthor=False)
    except (RuntimeError, OSError, KeyError) as error:
        raise _homeless() from error
    if not found.is_absolute():  # "~/.cache", as some versions leave it
        raise _homeless()
    return found / "runs"


def _homeless() -> OptionError:
    return OptionError(
        "there is no cache folder, as this user has no home directory; expected one to keep runs in; set "
        f"{CACHE_VARIABLE} to a folder, or give --work-dir DIR"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockFile:
    """The first line of a block's file; ``sha256``: of the two that follow, the record and the state."""

    kind: Literal["pdq-export block"] = "pdq-export block"
    version: Literal[1] = 1
    run: Annotated[str, Len(64, 64)]
    position: Annotated[int, Interval(ge=0, lt=1 << 20)]
    block: str
    sha256: Annotated[str, Len(64, 64)]


class RunFolder:
    """A run's folder while this process has it to itself; a context manager. Made by `open_run`."""

    def __init__(self, path: Path, run: Run, lock: filelock.BaseFileLock, stale: Sequence[Path] = ()) -> None:
        self.path, self.run, self._lock = path, run, lock
        self.longest = _LONGEST_FILE  # bytes of a block's file
        self._stale = list(stale)

    @property
    def stale(self) -> int:
        """How many blocks of an earlier run there are that are not to be taken up; they go when one is saved."""
        return len(self._stale)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def count(self) -> int:
        """How many blocks are on the disk, taken up or not."""
        return sum(1 for _ in block_files(self.path))

    def found(self) -> list[int]:
        """The positions of the blocks that are kept. Raises CheckpointError, which names a damaged file."""
        if self._stale:
            return []
        return [position for position, path in block_files(self.path) if self._read(path, position)]

    def load(self, position: int, block: str) -> tuple[str, str] | None:
        """Record and state of a block as they were kept, or None. Raises CheckpointError where they are damaged."""
        path = self._path(position)
        if self._stale or not os.path.lexists(path):
            return None
        header, record, state = self._read(path, position)
        if header.block != block:
            raise damaged(path, f"it is of block {header.block[:100]!r}, not of {block!r}")
        return record, state

    def save(self, position: int, block: str, record: str, state: str) -> None:
        """Keep record and state, each one line. Raises OptionError where they cannot be written."""
        body = f"{record}\n{state}\n".encode()
        sha256 = hashlib.sha256(body).hexdigest()
        header = BlockFile(run=self.run.digest, position=position, block=block, sha256=sha256)
        self._remove_stale()
        _make_way(self._path(position))
        write_atomically(self._path(position), f"{to_text(header)}\n".encode() + body, overwrite=True)

    def _remove_stale(self) -> None:
        """Remove what is not to be taken up, and describe the run that takes its place."""
        if not self._stale:
            return
        try:
            for path in self._stale:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OptionError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self._stale.clear()
        _make_way(self.path / HEADER)
        write_atomically(self.path / HEADER, write_header(self.run), overwrite=True)

    def damaged(self, position: int, what: object) -> CheckpointError:
        """The error for a block that was kept whole but cannot be used."""
        return damaged(self._path(position), what)

    def _path(self, position: int) -> Path:
        return self.path / f"block-{position + 1:04d}.jsonl"

    def _read(self, path: Path, position: int) -> tuple[BlockFile, str, str]:
        header, record, state = read_block(path, self.longest)
        if (header.run, header.position) != (self.run.digest, position):
            raise damaged(path, "it is of another run or block")
        return header, record, state


def read_block(path: Path, longest: int = _LONGEST_FILE) -> tuple[BlockFile, str, str]:
    """A block's file of at most ``longest`` bytes: its header, and record and state as text.

    Raises CheckpointError where it is damaged.
    """
    first = b""
    try:
        first, newline, body = read_bounded(path, longest).partition(b"\n")
        header = from_text(BlockFile, first.decode(), longest=_LONGEST_HEADER, what="its first line")
        if not newline or hashlib.sha256(body).hexdigest() != header.sha256:
            raise ValueError("its content does not have the SHA-256 that it says")
        record, state, _ = body.decode().split("\n")
    except (ValueError, OSError) as error:
        raise damaged(path, error, first) from error
    return header, record, state


def read_blocks(folder: Path) -> Iterator[tuple[BlockFile, str, str]]:
    """What `read_block` reads of all blocks in a run's folder, in order."""
    for _, path in block_files(folder):
        yield read_block(path)


def damaged(path: Path, what: object, text: bytes = b"") -> CheckpointError:
    """The error for a file of a run's folder that is not as it was written; ``text``: where it says its version."""
    if of_other_version(text):
        return CheckpointError(
            f"{path}: is of another version of pdq-export; expected what this one has kept; delete it, or start afresh "
            "without --resume"
        )
    told = " ".join(str(what).split())[:200]
    return CheckpointError(
        f"{path}: is damaged ({told}); expected the file as a run has kept it; delete it, and --resume calibrates what "
        "it held again, or start afresh without --resume"
    )


def open_run(root: Path, run: Run, *, resume: bool) -> RunFolder:
    """The folder of ``run`` below ``root``, made where there is none, for this process alone.

    Without ``resume`` the blocks that are kept there are not taken up, and removed when the first new one is saved.
    What killed runs have left unfinished goes in any case. Raises InUseError where another process has it, OptionError
    where it cannot be written, and CheckpointError where it is to be resumed and its header is damaged.
    """
    path = root / run.folder_name
    try:
        # A model that has another name now is the same model.
        same = sorted(found for found in root.glob(f"*-{run.short_digest}") if _is_of_run(found))
        path = same[0] if same else path
        if path.is_symlink():
            raise OptionError(f"{path}: is a symbolic link; expected a folder of its own for each run; remove the link")
        lock = _locked(path)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error
    try:
        stale = _settle(path, run, resume=resume)
    except OSError as error:
        lock.release()
        raise OptionError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error
    except BaseException:
        lock.release()
        raise
    return RunFolder(path, run, lock, stale)


def check_root(root: Path) -> None:
    """Make the folder that runs are to be kept in. Raises OptionError where nothing can be written there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{root}: cannot be written: {error.strerror or error}; choose another --work-dir") from error
    check_writable(root / HEADER, overwrite=True)


def block_files(folder: Path) -> Iterator[tuple[int, Path]]:
    """The files of finished blocks by position, in order."""
    found = {
        int(match[1]) - 1: path
        for path in folder.iterdir()
        if (match := BLOCK_NAME.fullmatch(path.name)) and is_regular(path)
    }
    yield from sorted(found.items())


def _settle(path: Path, run: Run, *, resume: bool) -> list[Path]:
    """Have a header; the files of blocks that are not to be taken up."""
    header = path / HEADER
    remove_all_leftovers(path)
    stale = [] if resume else [kept for _, kept in block_files(path)]
    if stale and is_regular(header):
        return stale  # all stays as it is, until there is something to take its place
    if resume and os.path.lexists(header):
        text = b""
        try:
            text = read_bounded(header, _LONGEST_HEADER)
            if read_header(path).digest != run.digest:
                raise ValueError("it is of another run")
        except ValueError as error:
            raise damaged(header, error, text) from error
        return []
    _make_way(header)
    write_atomically(header, write_header(run), overwrite=True)
    return stale


def _is_of_run(folder: Path) -> bool:
    return is_regular(folder / HEADER) and not folder.is_symlink()


def _make_way(path: Path) -> None:
    """Remove what is no regular file: a link would be written through."""
    try:
        if os.path.lexists(path) and not is_regular(path):
            path.unlink()
    except OSError as error:
        raise OptionError(f"{path}: is no regular file, and stays; remove it: {error.strerror or error}") from error


def _locked(path: Path) -> filelock.BaseFileLock:
    """The lock of a folder that is there once it is held. Raises InUseError, or OSError."""
    for _ in range(_ATTEMPTS):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire(path)
        except filelock.Timeout as error:
            raise InUseError(
                f"{path}: another run of the same model, data and options is at work there; wait for it, or end it"
            ) from error
        except FileNotFoundError:
            continue  # somebody has cleared the folder meanwhile
        if lock is not None:
            return lock
    raise FileNotFoundError(f"{path} is removed again and again")
