"""The folder of a run: what it holds, who has it, and what is told of a file that is not as it was written."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pdq_export.errors import CheckpointError, OptionError
from pdq_export.files import write_atomically
from pdq_export.leftovers import temporary_name
from pdq_export.runs import InUseError, Run, RunKey, default_root, find_runs, open_run, read_blocks
from pdq_export.runs.header import HEADER


def run(**parts: str) -> Run:
    key = RunKey(parts={"model": "a" * 64, "iters": "20", **parts})
    return Run(model="net.onnx", bits="4/2", created="2026-01-01T00:00:00+00:00", blocks=3, digest=key.digest, key=key)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock"}


def keep(root: Path, *blocks: int, **parts: str) -> Path:
    with open_run(root, run(**parts), resume=True) as folder:
        for position in blocks:
            folder.save(position, f"b{position}", f'{{"record":{position}}}', f'{{"state":{position}}}')
        return folder.path


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    path = keep(tmp_path, 0, 2)
    assert re.fullmatch(r"net-w4a2-[0-9a-f]{12}", path.name)
    assert names(path) == {HEADER, "block-0001.jsonl", "block-0003.jsonl"}
    with open_run(tmp_path, run(), resume=True) as folder:
        assert folder.found() == [0, 2]
        assert folder.load(0, "b0") == ('{"record":0}', '{"state":0}')
        assert folder.load(1, "b1") is None
    assert [header.block for header, _, _ in read_blocks(path)] == ["b0", "b2"]


def test_without_resume_it_starts_afresh(tmp_path: Path) -> None:
    keep(tmp_path, 0, 1)
    with open_run(tmp_path, run(), resume=False) as folder:
        assert (folder.found(), folder.load(0, "b0"), folder.stale) == ([], None, 2)
        assert names(folder.path) == {HEADER, "block-0001.jsonl", "block-0002.jsonl"}
    with open_run(tmp_path, run(), resume=True) as folder:  # nothing has been saved in between
        assert folder.found() == [0, 1]
    with open_run(tmp_path, run(), resume=False) as folder:
        folder.save(0, "b0", "{}", "{}")
        assert (folder.found(), folder.stale) == ([0], 0)
        assert names(folder.path) == {HEADER, "block-0001.jsonl"}


def test_another_key_is_another_folder(tmp_path: Path) -> None:
    keep(tmp_path, 0)
    with open_run(tmp_path, run(iters="30"), resume=True) as folder:
        assert folder.found() == []
    assert len(find_runs(tmp_path)) == 2


def test_how_two_keys_differ() -> None:
    before, now = run(seed="1").key, run(seed="2", model="b" * 64, exclude="a").key
    assert now.differences(before) == ["exclude (not given, now a)", "model", "seed (1, now 2)"]
    assert now.differences(now) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-9] + data[-8:], "its content does not have the SHA-256 that it says"),
        (lambda data: data.replace(b"state", b"steak"), "its content does not have the SHA-256 that it says"),
        (lambda data: data[:50], "Unterminated string"),
        (lambda data: b"", "Expecting value"),
        (lambda data: b"\xff\xfe" + data, "can't decode"),
        (lambda data: data.replace(b'"version":1', b'"version":2', 1), "is of another version of pdq-export"),
        (lambda data: data.replace(b'"position":0', b'"position":1', 1), "it is of another run or block"),
        (lambda data: data.replace(b'"run":"', b'"run":"0', 1), "run is '0"),
    ],
)
def test_a_damaged_block_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    path = keep(tmp_path, 0) / "block-0001.jsonl"
    path.write_bytes(change(path.read_bytes()))
    with open_run(tmp_path, run(), resume=True) as folder:
        for read in (folder.found, lambda: folder.load(0, "b0")):
            with pytest.raises(CheckpointError) as raised:
                read()
            assert str(raised.value).startswith(f"{path}: is ")
            assert message in str(raised.value)
            assert "delete it, " in str(raised.value)
    with open_run(tmp_path, run(), resume=False) as folder:  # the remedy
        assert folder.found() == []


def test_a_damaged_header_is_refused_by_name(tmp_path: Path) -> None:
    path = keep(tmp_path, 0) / HEADER
    for content in (b"", b"{", path.read_bytes().replace(b'"iters":"20"', b'"iters":20'), b"\xff"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(f"{path}: is damaged (")):
            open_run(tmp_path, run(), resume=True)
    path.unlink()  # the remedy
    with open_run(tmp_path, run(), resume=True) as folder:
        assert folder.found() == [0]


def test_a_block_of_another_name(tmp_path: Path) -> None:
    keep(tmp_path, 0)
    with open_run(tmp_path, run(), resume=True) as folder, pytest.raises(CheckpointError, match="of block 'b0', not"):
        folder.load(0, "other")


OPEN = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_folder import open_run, run
folder = open_run(Path({where!r}), run(), resume=True)
print("open", flush=True)
sys.stdin.read()
"""


def test_another_process_has_it_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    here = Path(__file__).parent
    code = OPEN.format(root=str(here.parents[1]), tests=str(here), where=str(tmp_path))
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        for resume in (True, False):
            with pytest.raises(InUseError, match="another run of the same model, data and options is at work there"):
                open_run(tmp_path, run(), resume=resume)
        with open_run(tmp_path, run(iters="21"), resume=True):
            pass
    finally:
        other.kill()
        other.wait()
    with open_run(tmp_path, run(), resume=True):
        pass


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    path = keep(tmp_path, 0)
    for name in ("block-0002.jsonl", "block-0099.jsonl", HEADER):
        temporary_name(path / name).write_bytes(b"torn")
    (path / "notes.txt").write_bytes(b"precious")
    keep(tmp_path)
    assert names(path) == {HEADER, "block-0001.jsonl", "notes.txt"}


def test_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match="cannot be written: Not a directory"):
        open_run(tmp_path / "file", run(), resume=False)

    def full(path: Path, content: bytes, **options: object) -> None:
        raise OptionError(f"{path}: cannot be written: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr("pdq_export.runs.folder.write_atomically", full)
    with pytest.raises(OptionError, match="No space left"):
        open_run(tmp_path, run(), resume=False)
    monkeypatch.setattr("pdq_export.runs.folder.write_atomically", write_atomically)
    with open_run(tmp_path, run(), resume=False):  # the lock is free again
        pass


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(tmp_path))
    assert default_root() == tmp_path  # as --work-dir has it
    monkeypatch.delenv("PDQ_EXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "pdq-export" in str(default_root())


def homeless(*arguments: object, **options: object) -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("found", [homeless, lambda *arguments, **options: Path("~/.cache/pdq-export")])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    monkeypatch.delenv("PDQ_EXPORT_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", found)
    with pytest.raises(OptionError, match=r"has no home directory.*PDQ_EXPORT_CACHE to a folder, or give --work"):
        default_root()


def test_names_of_any_length(tmp_path: Path) -> None:
    name = "\N{GRINNING FACE}a" * 60
    long = dataclasses.replace(
        run(), model=f"{name}\N{CJK UNIFIED IDEOGRAPH-20000}.onnx".replace(name[0], chr(0x20000))
    )
    with open_run(tmp_path, long, resume=True) as folder:
        folder.save(0, "b" * 70_000, "{}", "{}")
        assert folder.load(0, "b" * 70_000) == ("{}", "{}")


def test_links_are_not_written_through_and_pipes_not_waited_for(tmp_path: Path) -> None:
    path = keep(tmp_path / "runs", 0)
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (path / "block-0002.jsonl").symlink_to(precious)
    os.mkfifo(path / "block-0003.jsonl")
    with open_run(tmp_path / "runs", run(), resume=True) as folder:
        assert folder.found() == [0]
        for position in (1, 2):
            with pytest.raises(CheckpointError, match="it is no regular file"):
                folder.load(position, f"b{position}")
            folder.save(position, f"b{position}", "{}", "{}")
            assert folder.load(position, f"b{position}") == ("{}", "{}")
    (path / HEADER).unlink()
    (path / HEADER).symlink_to(precious)
    with open_run(tmp_path / "runs", run(), resume=False):
        pass
    assert precious.read_bytes() == b"precious"


def test_a_header_of_another_version(tmp_path: Path) -> None:
    path = keep(tmp_path, 0) / HEADER
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(CheckpointError, match="is of another version of pdq-export"):
        open_run(tmp_path, run(), resume=True)
