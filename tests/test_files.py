"""Files are written whole or not at all."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pdq_export.errors import OptionError
from pdq_export.files import Draft, check_writable, write_atomically, write_together


def test_writes_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.onnx", b"first")
    write_atomically(tmp_path / "a.onnx", b"second", overwrite=True)
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
    write_atomically(path, b"", overwrite=True)
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


def test_a_file_that_appears_in_between_is_not_replaced(tmp_path: Path) -> None:
    check_writable(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"precious")
    with pytest.raises(OptionError, match="b: exists already; choose another name, or replace it with --overwrite"):
        write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"b": b"precious"}
    write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"}, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}


def no_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_so_it_is_where_a_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    test_a_file_that_appears_in_between_is_not_replaced(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    test_a_draft_takes_its_places_at_the_end(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_draft_takes_its_places_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    expected = {"net.onnx.data": b"weights", "net.onnx": b"model", "reports/net.onnx": b"report"}
    with Draft() as draft:
        draft.add({tmp_path / "net.onnx.data": b"weights", tmp_path / "net.onnx": b"model"})
        (folder,) = tmp_path.glob(".net.onnx.data.*.tmp")
        assert contents(folder) == {"net.onnx.data": b"weights", "net.onnx": b"model"}  # it loads from here
        draft.add({tmp_path / "reports" / "net.onnx": b"report"})
        assert not (tmp_path / "net.onnx").exists()
        draft.place()
        assert contents(tmp_path) == expected
    assert contents(tmp_path) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx.data", "net.onnx", "reports"}
    assert stat.S_IMODE((tmp_path / "net.onnx").stat().st_mode) & 0o600 == 0o600


def test_an_empty_draft_leaves_nothing(tmp_path: Path) -> None:
    with Draft() as draft:
        draft.place()
    with pytest.raises(OptionError, match=r"^x$"), Draft():
        raise OptionError("x")


def interrupt(folder: Path) -> None:
    raise KeyboardInterrupt


def refuse(folder: Path) -> None:
    raise OptionError("refused")


def appear(folder: Path) -> None:
    (folder / "r.json").write_bytes(b"precious")


def vanish(folder: Path) -> None:
    shutil.move(folder / "reports", folder / "elsewhere")


@pytest.mark.parametrize(
    ("happens", "error", "message"),
    [
        (interrupt, KeyboardInterrupt, ""),
        (refuse, OptionError, "refused; "),
        (appear, OptionError, "r.json: exists already; "),
        (vanish, OptionError, "r.json: cannot be written: No such file or directory; "),
    ],
)
def test_a_draft_that_cannot_take_its_places_is_kept(
    tmp_path: Path, happens: Callable[[Path], None], error: type[BaseException], message: str
) -> None:
    (tmp_path / "reports").mkdir()
    report = tmp_path / ("reports" if happens is vanish else ".") / "r.json"

    def run() -> None:
        with Draft() as draft:
            draft.add({tmp_path / "net.onnx": b"model"})
            draft.add({report: b"report"})
            happens(tmp_path)
            draft.place()

    with pytest.raises(error) as raised:
        run()
    (folder,) = tmp_path.glob("*.unfinished-*")
    assert contents(folder) == {"net.onnx": b"model", "r.json": b"report"}
    told = f"{raised.value}{getattr(raised.value, '__notes__', '')}"
    assert message in told
    assert f"what is finished is kept as {folder / 'net.onnx'} and {folder / 'r.json'}" in told
    assert not (tmp_path / "net.onnx").exists()
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_draft_goes_elsewhere_where_its_place_is_full_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    path = tmp_path / "gone" / "net.onnx"

    def run() -> None:
        with Draft() as draft:
            draft.add({path: b"model"})
            assert "cannot be written: No such file or directory; what is finished is kept as" in caplog.text
            draft.place()

    with pytest.raises(OptionError, match=r"net\.onnx: cannot be written: No such file.*kept as") as raised:
        run()
    (kept,) = (tmp_path / "tmp").rglob("net.onnx")
    assert str(kept) in str(raised.value)
    assert kept.read_bytes() == b"model"
    with Draft() as draft:  # there is a folder again, on another file system
        draft.add({path: b"model"})
        path.parent.mkdir()
        monkeypatch.setattr(os, "link", no_links)
        draft.place()
    assert contents(path.parent) == {"net.onnx": b"model"}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OptionError, match="cannot be written: No such file"), Draft() as draft:
        draft.add({tmp_path / "missing" / "net.onnx": b"model"})
