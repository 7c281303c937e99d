"""Temporary files and folders of killed runs are told from those of live ones."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from pdq_export.files import Draft, check_writable, write_atomically
from pdq_export.leftovers import Claim, remove_leftovers, temporary_folder, temporary_name

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is told apart there")

HOLD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pdq_export.files import Draft
with Draft() as draft:
    draft.add({{Path({target!r}): b"live"}})
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_is_nobodys_goes(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    torn, folder, link = (temporary_name(target) for _ in range(3))
    torn.write_bytes(b"torn")
    folder.mkdir()
    (folder / "net.onnx").write_bytes(b"finished once")
    others = [".net.onnx.tmp", torn.name.replace("-", ""), f"{torn.name[:-5]}g.tmp", torn.name[1:]]
    others += [temporary_name(tmp_path / "other.onnx").name, "net.onnx.unfinished-0123abcd"]
    for name in others:
        (tmp_path / name).write_bytes(b"precious")
    link.symlink_to(tmp_path / others[0])
    claim = Claim.file(target)
    remove_leftovers(target)
    assert {path.name for path in tmp_path.iterdir()} == {*others, claim.path.name, link.name}
    claim.release()
    remove_leftovers(target)
    assert not claim.path.exists()
    remove_leftovers(tmp_path / "missing" / "net.onnx")


def test_what_somebody_else_has_replaced_stays_and_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    target = tmp_path / "net.onnx"
    torn = temporary_name(target)
    torn.write_bytes(b"torn")

    def replaced(*_: object) -> bool:
        monkeypatch.undo()
        return False

    monkeypatch.setattr(os.path, "samestat", replaced)
    remove_leftovers(target)
    with torn.open("rb") as file:  # a descriptor that were left open would have the lock on it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


LONG = "a" * 60
WIDE = "\N{GRINNING FACE}" * 60


@pytest.mark.parametrize("name", ["net.onnx", LONG, WIDE])
def test_temporary_names_fit_where_names_do(tmp_path: Path, name: str) -> None:
    assert temporary_name(tmp_path / name).name.startswith(".")
    write(tmp_path / name, b"whole")


@pytest.mark.parametrize("names", [("net.onnx", "net.onnx"), (f"{LONG}-1.onnx", f"{LONG}-2.onnx")])
def test_live_threads_keep_what_they_work_on(tmp_path: Path, names: tuple[str, str]) -> None:
    """Two of one output, or of names that begin alike, which write and clean up at once."""
    failures: list[BaseException] = []

    def work(name: str, content: bytes) -> None:
        try:
            for _ in range(60):
                with Draft() as draft:
                    draft.add({tmp_path / name: content, tmp_path / f"{name}.data": content})
                    draft.place(overwrite=True)
                write_atomically(tmp_path / name, content, overwrite=True)
                check_writable(tmp_path / name, overwrite=True)
                remove_leftovers(tmp_path / name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name, b"12"[k : k + 1])) for k, name in enumerate(names * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert {path.name for path in tmp_path.iterdir()} == {*names, *(f"{name}.data" for name in names)}


def test_who_creates_and_who_cleans_up_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is created is found before it is locked: then there is another one."""
    target, opened = tmp_path / "net.onnx", os.open
    found: list[object] = []

    def meet(path: object, flags: int, *mode: int) -> int:
        descriptor = opened(path, flags, *mode)  # type: ignore[arg-type]
        if flags & os.O_CREAT and not found:
            found.append(path)
            remove_leftovers(target)
            assert not os.path.exists(path)  # type: ignore[arg-type]
        return descriptor

    monkeypatch.setattr("pdq_export.leftovers.os.open", meet)
    write_atomically(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert len(found) == 1


def test_a_draft_of_a_live_run_stays_and_that_of_a_killed_one_goes(tmp_path: Path) -> None:
    target, root = tmp_path / "net.onnx", str(Path(__file__).parents[1])
    code = HOLD.format(root=root, target=str(target))
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        (live,) = tmp_path.iterdir()
        write(target, b"one")
        assert (live / "net.onnx").read_bytes() == b"live"
    finally:
        other.kill()
        other.wait()
    write(target, b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def write(target: Path, content: bytes) -> None:
    with Draft() as draft:
        draft.add({target: content})
        draft.place(overwrite=True)
    assert target.read_bytes() == content


IN_FOLDER = """
import sys
sys.path.insert(0, {root!r})
from pdq_export.leftovers import temporary_folder
with temporary_folder() as folder:
    (folder / "optimized.onnx").write_bytes(b"large")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_temporary_folders_of_killed_processes_go_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a file is judged, by onnxruntime, which writes the graph that it has made of it; live ones stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = IN_FOLDER.format(root=str(Path(__file__).parents[1]))
    command, environment = [sys.executable, "-c", program], {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "text": True}
    with subprocess.Popen(command, **pipes) as killed:  # type: ignore[call-overload]
        left = Path(killed.stdout.readline().strip())
        with temporary_folder() as beside:
            assert left.is_dir()
            assert beside.stat().st_mode & 0o777 == 0o700
        killed.kill()
    assert (left / "optimized.onnx").is_file()
    with temporary_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())
