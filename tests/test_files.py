"""Files are written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from pdq_export.errors import OptionError
from pdq_export.files import check_writable, write_atomically


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.onnx", b"first")
    write_atomically(tmp_path / "a.onnx", b"second")
    assert (tmp_path / "a.onnx").read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.onnx"]


def test_permissions_are_the_umasks_or_those_there_were(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        write_atomically(path, b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write_atomically(path, b"")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
    check_writable(tmp_path / "link")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_bytes() == b"x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | BaseException
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"precious")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, OptionError)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["a"]


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.onnx")
    assert os.listdir(tmp_path) == []
    (tmp_path / "old").write_bytes(b"old")
    check_writable(tmp_path / "old", overwrite=True)
    assert (tmp_path / "old").read_bytes() == b"old"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, "is a folder; expected the name of a file"),
        (tmp_path / "missing" / "a", "there is no folder .*; create it first"),
        (tmp_path / "file" / "a", "cannot be written|there is no folder"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
        (tmp_path / "file", "exists already; choose another name, or replace it with --overwrite"),
        (Path("/proc/a"), "cannot be written"),
        (Path(os.devnull), "is not a regular file"),
    ):
        with pytest.raises(OptionError, match=message):
            check_writable(path)


@pytest.mark.parametrize("how", ["same", "relative", "symbolic link", "hard link"])
def test_an_input_is_never_replaced(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = tmp_path / "model.onnx", tmp_path / "other.onnx"
    source.write_bytes(b"precious")
    monkeypatch.chdir(tmp_path)
    match how:
        case "same":
            path = source
        case "relative":
            path = Path("model.onnx")
        case "symbolic link":
            path.symlink_to(source)
        case "hard link":
            path.hardlink_to(source)
    with pytest.raises(OptionError, match="is the same file as the input"):
        check_writable(path, overwrite=True, inputs=[tmp_path / "missing", source])
