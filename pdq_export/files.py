"""Writes files whole or not at all, and never over something of the user's that they did not name."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pdq_export.errors import OptionError, PdqError
from pdq_export.leftovers import Claim, remove_leftovers
from pdq_export.nearby import near_path

logger = logging.getLogger(__name__)


def check_writable(path: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Make sure that ``write_atomically`` will be able to write ``path``, before hours are spent on its content.

    Raises OptionError where its folder is missing or cannot be written, where it is a folder or a device, where it is
    one of the ``inputs`` (by whatever name) or exists in a folder of them, or where it exists and ``overwrite`` is not
    set.
    """
    path = Path(path)
    try:
        _check_target(path, overwrite, inputs)
        Claim.file(path.resolve()).remove()
    except OSError as error:
        raise _cannot_write(path, error) from error


def check_targets(
    targets: Iterable[tuple[str, Path]], *, overwrite: bool = False, inputs: Iterable[str | Path] = ()
) -> None:
    """`check_writable` for all files that a command writes, each with the option that asks for it.

    Raises OptionError for those too that are to be one and the same file.
    """
    seen: dict[Path, str] = {}
    inputs = list(inputs)
    for option, path in targets:
        if seen.get(path.resolve()) == option:
            raise OptionError(f"{path}: {option} is given twice with this name; expected two files")
        if (other := seen.setdefault(path.resolve(), option)) != option:
            raise OptionError(f"{path}: is both {option} and {other}; expected two files")
        check_writable(path, overwrite=overwrite, inputs=inputs)


def write_atomically(path: str | Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write ``content`` to ``path`` through a temporary file beside it; a failure leaves what was there before.

    A symbolic link is followed. Raises OptionError where the file cannot be written, and where there is one already
    and ``overwrite`` is not set, even one that has only just appeared.
    """
    write_together({Path(path): content}, overwrite=overwrite)


def write_together(contents: Mapping[Path, bytes], *, overwrite: bool = False) -> None:
    """Write several files like `write_atomically`, all or none: they take their places when all are on the disk.

    Their order is the order in which they appear; what depends on others comes last. Raises OptionError.
    """

    def fill(content: bytes) -> Callable[[Path], Claim]:
        return lambda target: _filled(target, content)

    _place({path: fill(content) for path, content in contents.items()}, overwrite)


class Draft:
    """Finished files that wait for their places, safe on the disk; to be used as a context manager.

    They lie in a new, hidden folder beside the first of them, under their own names, or in the temporary folder where
    that cannot be. `place` moves them where they belong, and removes the folder and those that killed runs have left.
    Where the block is left otherwise, by Ctrl-C or an error, the folder stays as NAME.unfinished-..., and the error
    says where.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._claim: Claim | None = None
        self._files: dict[Path, Path] = {}  # by where they belong

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or not self._files:
            self._remove()
        else:
            self._keep()
            error.add_note(self._whereabouts())
            if isinstance(error, PdqError):
                error.args = (f"{error}; {self._whereabouts()}",)

    def add(self, contents: Mapping[Path, bytes]) -> None:
        """Keep these files, by where they belong. Raises OptionError where nothing can be written at all."""
        first, *_ = contents
        if self._folder is not None:
            try:
                self._fill(self._folder, contents)
            except OSError as error:
                raise _cannot_write(first, error) from error
            return
        try:
            self._open(first.resolve().parent, contents)
        except OSError as error:
            try:
                self._open(Path(tempfile.gettempdir()), contents)
            except OSError:
                raise _cannot_write(first, error) from error
            logger.warning("%s: cannot be written: %s; %s", first, error.strerror or error, self._whereabouts())

    def place(self, *, overwrite: bool = False) -> None:
        """Put all files in their places, in the order in which they were added, or none.

        Raises OptionError where that cannot be, and where there is a file already and ``overwrite`` is not set.
        """

        def again(kept: Path) -> Callable[[Path], Claim]:
            return lambda target: _again(kept, target)

        _place({path: again(kept) for path, kept in self._files.items()}, overwrite)
        for path in self._files:
            remove_leftovers(path.resolve())
            remove_leftovers(Path(tempfile.gettempdir()) / path.name)
        self._files.clear()
        self._remove()

    def _open(self, parent: Path, contents: Mapping[Path, bytes]) -> None:
        """A new folder in ``parent`` with these files; none where that fails."""
        (first, *_) = contents
        try:
            self._claim = Claim.folder(parent / first.name)
            self._folder = self._claim.path
            self._fill(self._folder, contents)
        except BaseException:
            self._files.clear()
            self._remove()
            raise

    def _fill(self, folder: Path, contents: Mapping[Path, bytes]) -> None:
        for path, content in contents.items():
            kept = folder / path.name
            while kept in self._files.values():  # of files that belong into different folders
                kept = kept.with_name(f"other-{kept.name}")
            self._files[path] = _kept(kept, content)

    def _keep(self) -> None:
        """Let the folder have a name that people see and nobody cleans up."""
        assert self._folder is not None
        first = self._folder.name.removeprefix(".").removesuffix(".tmp")
        name, _, token = first.rpartition(".")
        token = token.rpartition("-")[2]
        visible = self._folder.with_name(f"{name}.unfinished-{token}")
        with contextlib.suppress(OSError):  # then it keeps its own, which the message says
            self._folder.rename(visible)
            self._files = {path: visible / kept.name for path, kept in self._files.items()}
        self._release()

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
        self._claim = None

    def _whereabouts(self) -> str:
        return "what is finished is kept as " + " and ".join(str(kept) for kept in self._files.values())


def _kept(path: Path, content: bytes) -> Path:
    """Write ``content`` and see to it that it is on the disk; a failure leaves no file."""
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _filled(target: Path, content: bytes) -> Claim:
    """A temporary file beside ``target`` with this ``content``; a failure leaves none."""
    claim = Claim.file(target)
    try:
        claim.write(content)
    except BaseException:
        claim.remove()
        raise
    return claim


def _again(kept: Path, target: Path) -> Claim:
    """The same file under a temporary name beside ``target``: a second link, or a copy where there can be none."""
    try:
        return Claim.link(kept, target)
    except OSError:
        return _filled(target, kept.read_bytes())


def _place(makers: Mapping[Path, Callable[[Path], Claim]], overwrite: bool) -> None:
    """Put files in their places, all or none. ``makers``: by path, what makes a temporary file beside the target."""
    temporaries: dict[Path, Claim] = {}  # by target
    undo: list[tuple[Path, Claim | None]] = []
    path = Path()
    try:
        try:
            for path, make in makers.items():
                target = path.resolve()
                temporaries[target] = make(target)
                if target.exists():
                    shutil.copymode(target, temporaries[target].path)
            for path, (target, temporary) in zip(makers, temporaries.items(), strict=True):  # noqa: B007, for the error
                if not overwrite:
                    _move_to_free_name(temporary.path, target)
                    undo.append((target, None))
                    continue
                if len(temporaries) > 1:
                    undo.append((target, _set_aside(target)))
                temporary.path.replace(target)
        except BaseException:  # Ctrl-C too
            _undo(undo)
            for temporary in temporaries.values():
                temporary.remove()
            raise
        for temporary in temporaries.values():
            temporary.release()
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise _cannot_write(path, error) from error
    for _, aside in undo:
        if aside is not None:
            aside.remove()


def _move_to_free_name(temporary: Path, target: Path) -> None:
    """Raises FileExistsError where there is something under that name."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: whoever creates the name has it
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            temporary.replace(target)
        except BaseException:
            target.unlink()
            raise
    else:
        temporary.unlink()


def _undo(placed: Sequence[tuple[Path, Claim | None]]) -> None:
    """What was placed goes, and what there was before comes back."""
    for target, aside in reversed(placed):
        with contextlib.suppress(OSError):
            if aside is None:
                target.unlink()
            else:
                aside.path.replace(target)
                aside.remove()  # two names of one file: then replacing does nothing


def _set_aside(target: Path) -> Claim | None:
    """A second name for what is at ``target``, or a copy where there are no links; None where nothing is."""
    if not target.exists():
        return None
    try:
        return Claim.link(target, target)
    except OSError:
        aside = Claim.file(target)
        shutil.copy2(target, aside.path)
    return aside


def _check_target(path: Path, overwrite: bool, inputs: Iterable[str | Path]) -> None:
    if path.is_dir():
        raise OptionError(f"{path}: is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise OptionError(
            f"{path}: cannot be written: there is no folder {str(path.parent)!r}; create it first"
            f"{near_path(path.parent, '')}"
        )
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # a name that the file system does not take fails here
    if not path.exists():
        return
    for source in inputs:
        if os.path.exists(source) and os.path.samefile(path, source):
            raise OptionError(f"{path}: is the same file as the input {str(source)!r}; choose another name to write to")
        if os.path.isdir(source) and path.resolve().is_relative_to(Path(source).resolve()):
            raise OptionError(
                f"{path}: exists in the folder {str(source)!r}, which is an input; choose a name outside of it"
            )
    if not path.is_file():
        raise OptionError(f"{path}: is not a regular file; expected the name of a file to write")
    if not overwrite:
        raise _exists(path)


def _exists(path: Path) -> OptionError:
    return OptionError(f"{path}: exists already; choose another name, or replace it with --overwrite")


def _cannot_write(path: Path, error: OSError) -> OptionError:
    return OptionError(f"{path}: cannot be written: {error.strerror or error}; choose another place")
