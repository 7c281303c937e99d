"""Temporary files and folders of killed runs are told from those of live ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from pdq_export.files import Draft
from pdq_export.leftovers import Claim, remove_leftovers, temporary_name

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
    torn, folder, claimed = (temporary_name(target) for _ in range(3))
    torn.write_bytes(b"torn")
    folder.mkdir()
    (folder / "net.onnx").write_bytes(b"finished once")
    claimed.write_bytes(b"at work")
    others = [".net.onnx.tmp", ".net.onnx.0123456.tmp", ".net.onnx.0123abcg.tmp", ".other.onnx.0123abcd.tmp"]
    others += ["net.onnx.unfinished-0123abcd", "net.onnx.0123abcd.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"precious")
    (tmp_path / ".net.onnx.89abcdef.tmp").symlink_to(tmp_path / others[0])
    claim = Claim(claimed)
    remove_leftovers(target)
    assert {path.name for path in tmp_path.iterdir()} == {*others, claimed.name, ".net.onnx.89abcdef.tmp"}
    claim.release()
    remove_leftovers(target)
    assert not claimed.exists()
    remove_leftovers(tmp_path / "missing" / "net.onnx")


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
