"""All runs of a folder: listed, and cleared without touching what is not ours."""

import datetime
import os
import re
from pathlib import Path
from typing import Any

import filelock
import pytest

from pdq_export.errors import OptionError
from pdq_export.leftovers import temporary_name
from pdq_export.runs import InUseError, RunFolder, clear_runs, find_runs, open_run
from pdq_export.runs.header import HEADER
from pdq_export.runs.lock import acquire

from .test_folder import keep, run


def test_runs_are_listed(tmp_path: Path) -> None:
    assert find_runs(tmp_path / "missing") == []
    first, second = keep(tmp_path, 0, 1), keep(tmp_path, 0, iters="30")
    for path in second.iterdir():
        os.utime(path, (1e9, 1e9))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "block-0001.jsonl").write_bytes(b"not of a run")
    found = find_runs(tmp_path)
    assert [kept.path for kept in found] == [first, second]
    assert [kept.done for kept in found] == [2, 1]
    assert found[0].run == run()
    assert found[0].size == sum(path.stat().st_size for path in first.iterdir())
    (first / HEADER).write_bytes(b"{")
    assert {kept.run is None for kept in find_runs(tmp_path)} == {True, False}


def test_clearing_all(tmp_path: Path) -> None:
    first, second = keep(tmp_path, 0), keep(tmp_path, iters="30")
    (second / HEADER).write_bytes(b"{")  # a damaged one as well
    cleared = clear_runs(tmp_path)
    assert set(cleared.removed) == {first, second}
    assert cleared.size > 0
    assert list(tmp_path.iterdir()) == []


def test_clearing_some(tmp_path: Path) -> None:
    first, second = keep(tmp_path, 0), keep(tmp_path, 0, iters="30")
    with pytest.raises(OptionError, match=re.escape(f"'nothing': is no run in {tmp_path}")):
        clear_runs(tmp_path, ["nothing"])
    assert clear_runs(tmp_path, [first.name.rpartition("-")[2]]).removed == (first,)
    assert [kept.path for kept in find_runs(tmp_path)] == [second]
    for path in second.iterdir():
        os.utime(path, (1e9, 1e9))
    keep(tmp_path, 0)
    assert clear_runs(tmp_path, older_than=datetime.timedelta(days=1)).removed == (second,)
    assert [kept.path for kept in find_runs(tmp_path)] == [first]


def test_what_is_not_ours_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = keep(tmp_path, 0)
    (path / "notes.txt").write_bytes(b"precious")
    (path / "block-1.jsonl").write_bytes(b"precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lock").write_bytes(b"precious")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / HEADER).write_bytes(b"{}")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(elsewhere)
    clear_runs(tmp_path / "root")
    assert (elsewhere / HEADER).exists()
    assert clear_runs(tmp_path, [path.name]).removed == (path,)
    assert {found.name for found in path.iterdir()} == {"notes.txt", "block-1.jsonl"}
    assert "holds files that are not of a run, which stay" in caplog.text
    assert (tmp_path / "other" / "lock").exists()


def test_a_run_at_work_stays(tmp_path: Path) -> None:
    with open_run(tmp_path, run(), resume=True) as folder:
        cleared = clear_runs(tmp_path)
        assert (cleared.removed, cleared.in_use) == ((), (folder.path,))
        folder.save(0, "b0", "{}", "{}")
    assert clear_runs(tmp_path).removed == (folder.path,)


def test_odd_entries_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, gone = keep(tmp_path, 0), keep(tmp_path, 0, iters="30")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (path / "block-0002.jsonl").symlink_to(tmp_path / "nowhere")
    (path / "block-0003.jsonl").mkdir()
    os.mkfifo(path / "block-0004.jsonl")
    lstat = Path.lstat

    def vanish(self: Path) -> os.stat_result:
        if self.parent == gone and self.name.startswith("block"):
            raise FileNotFoundError(self)
        return lstat(self)

    monkeypatch.setattr(Path, "lstat", vanish)
    assert {kept.path: kept.done for kept in find_runs(tmp_path)} == {path: 1, gone: 0}

    def unreadable(self: Path) -> list[Path]:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "iterdir", unreadable)
    assert find_runs(tmp_path) == []


def test_who_waits_for_a_folder_that_is_cleared_gets_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a file that is gone is no lock: another may make a new one, and have that."""
    path = keep(tmp_path, 0)
    acquired = filelock.FileLock.acquire
    met: list[str] = []

    def meet(self: filelock.BaseFileLock, *arguments: Any, **options: Any) -> Any:
        given = acquired(self, *arguments, **options)
        if not met:
            met.append(self.lock_file)
            Path(self.lock_file).unlink()
            Path(self.lock_file).write_bytes(b"")  # of a third one
        return given

    monkeypatch.setattr(filelock.FileLock, "acquire", meet)
    with open_run(tmp_path, run(), resume=True) as folder:
        assert folder.path == path
        with pytest.raises(InUseError):
            open_run(tmp_path, run(), resume=True)


def test_clearing_never_removes_the_lock_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(tmp_path, 0)
    others: list[RunFolder] = []

    class Meeting:
        def __init__(self, lock: filelock.BaseFileLock | None) -> None:
            assert lock is not None
            self.lock = lock

        def release(self) -> None:
            self.lock.release()
            others.append(open_run(tmp_path, run(), resume=True))

    monkeypatch.setattr("pdq_export.runs.shelf.acquire", lambda folder: Meeting(acquire(folder)))
    clear_runs(tmp_path)
    assert (path / "lock").exists()
    with pytest.raises(InUseError):
        open_run(tmp_path, run(), resume=True)
    others[0].__exit__(None, None, None)


def test_clearing_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = keep(tmp_path, 0, 1), keep(tmp_path, 0, iters="30")
    unlink = Path.unlink

    def refuse(self: Path, **options: bool) -> None:
        if self == first / "block-0002.jsonl":
            raise PermissionError(13, "Permission denied")
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OptionError, match="cannot be removed: Permission denied; 1 other runs are removed"):
        clear_runs(tmp_path)
    assert [kept.path for kept in find_runs(tmp_path)] == [first]  # it is still listed
    assert not second.exists()


def test_what_nobody_lists_goes_too(tmp_path: Path) -> None:
    path, locked = keep(tmp_path, 0), keep(tmp_path, iters="30")
    (locked / HEADER).unlink()
    temporary_name(path / "block-0077.jsonl").write_bytes(b"torn")
    clear_runs(tmp_path)
    assert list(tmp_path.iterdir()) == []
