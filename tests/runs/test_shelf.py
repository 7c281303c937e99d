"""All runs of a folder: listed, and cleared without touching what is not ours."""

import datetime
import os
import re
from pathlib import Path

import pytest

from pdq_export.errors import OptionError
from pdq_export.runs import clear_runs, find_runs, open_run
from pdq_export.runs.header import HEADER

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
